// How points are told apart, how an axis is spread, and what all charts have in common.
const LIGHT = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5F5F5F", "#661100"];
const DARK = ["#4C9FE0", "#F0833A", "#2FC79A", "#E394C0", "#F2B53D", "#A5DBFA", "#B9B9B9", "#DCCB3C"];
const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "hexagon"];
const OTHERS = -1,
  MOST_DOTS = 1800,
  MOST_INTERVALS = 60;
const paint = k => (k === OTHERS ? (dark() ? "#7d868f" : "#8A8A8A") : (dark() ? DARK : LIGHT)[k]);

let names = null;
const allNames = () =>
  (names ??= distinct(data.columns.name.i.filter((_, i) => measured(i) && !reference(i)))
    .map(k => data.columns.name.v[k])
    .sort());

// name -> index of its colour and symbol: those of the figures where eyes can tell them apart, else
// the names most on the front get one, the others are grey.
function looks(points, marks) {
  const present = distinct(points.map(i => cell("name", i))),
    every = allNames();
  if (every.length <= LIGHT.length) return new Map(present.map(n => [n, every.indexOf(n)]));
  const count = new Map(present.map(n => [n, [0, 0, 0]]));
  for (const i of points)
    count.get(cell("name", i))[[FRONT, TIED, DOMINATED].indexOf(marks.get(i) || DOMINATED)]++;
  const ranked = present.sort((a, b) => {
    const p = count.get(a),
      q = count.get(b);
    return q[0] - p[0] || q[1] - p[1] || q[2] - p[2] || (a < b ? -1 : 1);
  });
  const most = ranked.length <= LIGHT.length ? LIGHT.length : LIGHT.length - 1;
  const first = ranked.slice(0, most).sort();
  return new Map(ranked.map(n => [n, first.indexOf(n)]));
}

// A ratio to full precision is drawn by the logarithm of its excess, linear below 0.05 %: on a plain
// axis everything from 4 bits up would lie within a line's width of the reference.
function scale(metric, base, values, phone) {
  if (base !== null && base > 0 && data.metrics[metric].delta === "ratio" && metric.startsWith("ppl")) {
    const up = v => Math.asinh(((v / base - 1) * 100) / 0.05);
    const ticks = [0, 0.1, 1, 10, 100, 1000, 1e4, 1e6, 1e8];
    const low = values.reduce((least, v) => Math.min(least, v), base);
    if (low < base * 0.9995)
      for (const t of [-0.1, -1, -10, -50]) if (base * (1 + t / 100) > low * 0.98) ticks.push(t);
    ticks.sort((a, b) => a - b);
    const said = t =>
      (t > 0 ? "+" : "−") +
      (Math.abs(t) > 1e6 ? Math.abs(t).toExponential(0).replace("+", "") : Math.abs(t).toLocaleString("en")) +
      " %";
    const name = t => {
      const v = number(base * (1 + t / 100), 4);
      return phone ? (t ? said(t) : v) : t ? v + "  (" + said(t) + ")" : v;
    };
    return { up, axis: { tickvals: ticks.map(t => up(base * (1 + t / 100))), ticktext: ticks.map(name) } };
  }
  if (/^(kl|weight_error|output_error|hidden_error)/.test(metric) && values.every(v => v > 0))
    return { up: v => v, axis: { type: "log", exponentformat: "power" } };
  return { up: v => v, axis: {} };
}

const frameOf = () => ({
  paper_bgcolor: "rgba(0,0,0,0)",
  plot_bgcolor: "rgba(0,0,0,0)",
  font: { color: css("--ink"), family: "system-ui, sans-serif", size: 12 },
  modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent") },
  hoverlabel: {
    align: "left",
    bgcolor: css("--card"),
    bordercolor: css("--soft"),
    font: { color: css("--ink"), size: 12 },
  },
});
const gridOf = () => ({
  gridcolor: css("--line"),
  linecolor: css("--line"),
  zeroline: false,
  automargin: true,
});
const CONFIG = {
  responsive: false,
  displaylogo: false,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  toImageButtonOptions: { format: "svg", filename: "front" },
};
