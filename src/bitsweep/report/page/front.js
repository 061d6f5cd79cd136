// The front as report/front.py computes it, among any points and for any two metrics.
const FRONT = "front",
  TIED = "tied",
  DOMINATED = "dominated";

function front(rows, x, y) {
  const marks = new Map();
  if (!(x in data.metrics) || !(y in data.metrics)) return marks;
  const sx = data.metrics[x].better === "higher" ? -1 : 1,
    sy = data.metrics[y].better === "higher" ? -1 : 1;
  const points = [];
  for (const i of rows) {
    if (!measured(i)) continue;
    if (reference(i)) {
      marks.set(i, "reference");
      continue;
    }
    const a = value(x, i),
      b = value(y, i);
    if (a === null || b === null || partOf(i) !== null) continue;
    const ends = [value(y, i, "dlo"), value(y, i, "dhi")];
    const [lo, hi] = ends[0] === null ? [NaN, NaN] : sy > 0 ? ends : [-ends[1], -ends[0]];
    points.push({ i, x: sx * a, y: sy * b, lo, hi });
  }
  points.sort((a, b) => a.x - b.x || a.y - b.y);
  const best = [];
  let least = Infinity; // y of the points with a smaller x
  for (let start = 0, end; start < points.length; start = end) {
    for (end = start; end < points.length && points[end].x === points[start].x;) end++;
    const low = points[start].y;
    if (low < least) {
      for (let k = start; k < end && points[k].y === low; k++) {
        marks.set(points[k].i, FRONT);
        best.push(points[k]);
      }
      least = low;
    }
  }
  for (const p of points) {
    if (marks.get(p.i) === FRONT) continue;
    let tied = true;
    for (const q of best) {
      if (q.x > p.x) break;
      const dominates = q.y <= p.y && (q.x < p.x || q.y < p.y);
      if (dominates && !(p.lo <= q.hi)) {
        tied = false;
        break;
      }
    }
    marks.set(p.i, tied ? TIED : DOMINATED);
  }
  return marks;
}
