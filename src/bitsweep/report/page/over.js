// What lies over and below the chart: the interval of a point, the ring of the open one, the legend.
// The interval of the point under the pointer, and a ring around the one that is open.
function overlay() {
  const over = $("over"),
    layout = $("chart")._fullLayout;
  over.replaceChildren();
  if (!layout || !drawn) return;
  const draw = (i, ring) => {
    const { x, y, s } = drawn;
    if (
      i === null ||
      i === undefined ||
      value(x, i) === null ||
      value(y, i) === null ||
      cell("model", i) !== state.model
    )
      return;
    const place = (axis, v) => axis._offset + axis.c2p(v);
    const px = place(layout.xaxis, value(x, i)),
      py = place(layout.yaxis, s.up(value(y, i)));
    if (!isFinite(px) || !isFinite(py)) return;
    const line = (x1, y1, x2, y2) =>
      over.append(shape("line", { x1, y1, x2, y2, stroke: css("--ink"), "stroke-width": 1.5 }));
    const ends = interval(y, i),
      wide = interval(x, i);
    if (ends) {
      const [a, b] = ends.map(v => place(layout.yaxis, s.up(v)));
      if (isFinite(a) && isFinite(b)) {
        line(px, a, px, b);
        line(px - 4, a, px + 4, a);
        line(px - 4, b, px + 4, b);
      }
    }
    if (wide) {
      const [a, b] = wide.map(v => place(layout.xaxis, v));
      if (isFinite(a) && isFinite(b)) line(a, py, b, py);
    }
    if (ring)
      over.append(
        shape("circle", { cx: px, cy: py, r: 10, fill: "none", stroke: css("--ink"), "stroke-width": 2 }),
      );
  };
  draw(drawn.hovered, false);
  draw(state.row, true);
}

function shape(tag, has) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(has)) element.setAttribute(key, value);
  return element;
}

const PATHS = {
  circle: "M7 2a5 5 0 1 1 0 10a5 5 0 1 1 0-10z",
  square: "M2.5 2.5h9v9h-9z",
  "triangle-up": "M7 1.5l5.5 10h-11z",
  diamond: "M7 1l6 6-6 6-6-6z",
  "triangle-down": "M1.5 2.5h11l-5.5 10z",
  cross: "M5 1.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5v-4h3.5z",
  x: "M3.5 1l3.5 3.5 3.5-3.5 2.5 2.5-3.5 3.5 3.5 3.5-2.5 2.5-3.5-3.5-3.5 3.5-2.5-2.5 3.5-3.5-3.5-3.5z",
  hexagon: "M7 1l5.2 3v6l-5.2 3-5.2-3v-6z",
};

function legend(points, look) {
  const entry = (k, name) => {
    const svg = shape("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" });
    svg.append(shape("path", { d: PATHS[k === OTHERS ? "circle" : SYMBOLS[k]], fill: paint(k) }));
    return make("span", { title: name }, svg, cut(name, 60));
  };
  const named = [...look].filter(([, k]) => k !== OTHERS).sort((a, b) => a[1] - b[1]),
    others = look.size - named.length;
  $("legend").replaceChildren(
    ...named.map(([name, k]) => entry(k, name)),
    ...(others ? [entry(OTHERS, plural(others, "other"))] : []),
  );
}
