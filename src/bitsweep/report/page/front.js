// The front as report/front.py computes it, among any points and for any two metrics.
const FRONT = "front",
  TIED = "tied",
  DOMINATED = "dominated";

// Of a time its own interval, of all else the paired difference's; smaller is better.
function bounds(metric, i, sign) {
  const own = isTime(metric),
    ends = [value(metric, i, own ? "lo" : "dlo"), value(metric, i, own ? "hi" : "dhi")];
  return ends[0] === null ? [NaN, NaN] : sign > 0 ? ends : [-ends[1], -ends[0]];
}

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
    const across = isTime(x) ? bounds(x, i, sx) : [NaN, NaN];
    points.push({ i, x: sx * a, y: sy * b, across, up: bounds(y, i, sy) });
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
      if (dominates && !(p.up[0] <= q.up[1]) && !(p.across[0] <= q.across[1])) {
        tied = false;
        break;
      }
    }
    marks.set(p.i, tied ? TIED : DOMINATED);
  }
  return marks;
}
