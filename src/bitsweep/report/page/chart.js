// Quality against cost. Filled: on the front; hollow: within noise of it; faint: dominated.
let drawn = null; // what stands in the chart now, for hover and zoom

const hasChart = () =>
  view.x in data.metrics &&
  view.y in data.metrics &&
  view.all.some(
    i => !reference(i) && partOf(i) === null && value(view.x, i) !== null && value(view.y, i) !== null,
  );

function chart() {
  const { x, y } = view,
    marks = view.marks,
    model = state.model;
  const points = view.rows.filter(
    i => !reference(i) && measured(i) && value(x, i) !== null && value(y, i) !== null && marks.has(i),
  );
  const baseY = base(model, y),
    baseX = data.metrics[x].delta === "ratio" || x.startsWith("decode_vs") ? base(model, x) : null;
  const phone = innerWidth < 700,
    s = scale(
      y,
      baseY,
      points.map(i => value(y, i)),
      phone,
    );
  const marked = mark => points.filter(i => marks.get(i) === mark),
    first = marked(FRONT),
    tied = marked(TIED),
    faint = marked(DOMINATED);
  const look = looks(points, marks),
    showIntervals = first.length + tied.length <= MOST_INTERVALS;
  drawn = { x, y, s, many: [faint, tied, first], look, size: points.length > 600 ? 7 : 9 };
  const traces = [];
  const best = [...first].sort((a, b) => value(x, a) - value(x, b) || value(y, a) - value(y, b));
  traces.push({
    x: best.map(i => value(x, i)),
    y: best.map(i => s.up(value(y, i))),
    mode: "lines",
    hoverinfo: "skip",
    line: { color: css("--soft"), width: 1.5, shape: data.metrics[x].better === "higher" ? "vh" : "hv" },
  });
  traces.push(
    dots(thin(faint, null), 0.4),
    dots(thin(tied, null), 1, showIntervals),
    dots(thin(first, null), 1, showIntervals),
  );
  const left = points.length - traces.slice(1).reduce((sum, t) => sum + t.x.length, 0);
  const layout = {
    ...frameOf(),
    showlegend: false,
    hovermode: "closest",
    margin: { l: 60, r: 14, t: 26, b: 48 },
    xaxis: {
      ...gridOf(),
      title: { text: escape(titleOf(x)) },
      ...costs(points.map(i => value(x, i))),
    },
    yaxis: { ...gridOf(), title: { text: escape(titleOf(y)), standoff: 10 }, ...s.axis },
    shapes: [],
    annotations: [],
  };
  const dotted = { dash: "dot", width: 1.5, color: css("--ink") };
  if (baseY !== null) {
    layout.shapes.push({
      type: "line",
      xref: "paper",
      x0: 0,
      x1: 1,
      y0: s.up(baseY),
      y1: s.up(baseY),
      line: dotted,
    });
    layout.annotations.push({
      xref: "paper",
      x: 1,
      y: layout.yaxis.type === "log" ? Math.log10(baseY) : s.up(baseY),
      yanchor: data.metrics[y].better === "higher" ? "bottom" : "top",
      xanchor: "right",
      showarrow: false,
      text: "full precision " + number(baseY, 5),
      font: { size: 11, color: css("--soft") },
    });
    if (layout.yaxis.type === "log" && baseY <= 0) layout.shapes = layout.annotations = [];
  }
  if (baseX !== null && x.startsWith("decode_vs"))
    layout.shapes.push({
      type: "line",
      yref: "paper",
      y0: 0,
      y1: 1,
      x0: 1,
      x1: 1,
      line: { ...dotted, width: 1 },
    });
  if (!points.length) {
    layout.xaxis.visible = false;
    layout.annotations.push({
      xref: "paper",
      yref: "paper",
      x: 0.5,
      y: 0.75,
      showarrow: false,
      text: "no point that passes the filters has both numbers",
      font: { size: 14, color: css("--soft") },
    });
  }
  if (phone)
    Object.assign(layout.yaxis, {
      tickfont: { size: 10.5 },
      title: { text: escape(titleOf(y)), standoff: 4, font: { size: 11 } },
    });
  drawn.type = layout.yaxis.type || "linear";
  Plotly.react($("chart"), traces, layout, CONFIG);
  if (!$("chart").dataset.wired) wire();
  legend(points, look);
  $("chart").setAttribute(
    "aria-label",
    titleOf(y) +
      " against " +
      titleOf(x) +
      ", " +
      plural(points.length, "point") +
      "; the table below has each with its mark",
  );
  $("chart-said").textContent =
    plural(first.length, "point") +
    " on the front (filled, on the line: no other " +
    (state.scope === "all" ? "point of this model" : "point shown") +
    " is at least as good in both), " +
    tied.length.toLocaleString("en") +
    " within noise of it (hollow), " +
    faint.length.toLocaleString("en") +
    " dominated (faint). Dotted: full precision. " +
    (showIntervals ? "Bars" : "Bars, on the point under the pointer") +
    ": 95 % intervals, paired with full precision. " +
    (left
      ? plural(left, "point") +
        " lie beneath others of their colour and are not drawn; zooming in shows more. "
      : "") +
    "A click opens a point.";
  overlay();
}

// A logarithmic axis where one far point would crowd the others, as in the figures.
const FAR = 2.5;
function costs(values) {
  const low = Math.min(...values),
    high = Math.max(...values);
  if (!(low > 0 && high > FAR * low)) return {};
  if (high > 1000 * low) return { type: "log", exponentformat: "power" };
  const tens = [...Array(12).keys()].map(k => 10 ** (Math.floor(Math.log10(low)) + k));
  return { type: "log", tickvals: tens.flatMap(ten => [1, 2, 3, 5].map(k => Number((k * ten).toPrecision(1)))) };
}

function dots(rows, opacity, bars = false) {
  const { x, y, s, look, size } = drawn,
    marks = view.marks,
    color = rows.map(i => paint(look.get(cell("name", i))));
  const symbol = rows.map(i => {
    const k = look.get(cell("name", i));
    return (k === OTHERS ? "circle" : SYMBOLS[k]) + (marks.get(i) === TIED ? "-open" : "");
  });
  const trace = {
    type: "scatter",
    mode: "markers",
    x: rows.map(i => value(x, i)),
    y: rows.map(i => s.up(value(y, i))),
    customdata: rows,
    marker: {
      size: rows.map(i => (look.get(cell("name", i)) === OTHERS ? size - 3 : size)),
      color,
      symbol,
      opacity,
      line: { width: 1.5, color },
    },
    hovertemplate: "%{text}<extra></extra>",
    text: rows.map(hover),
  };
  if (bars) {
    const ends = rows.map(i => interval(y, i));
    trace.error_y = {
      type: "data",
      symmetric: false,
      thickness: 1,
      width: 3,
      color: css("--soft"),
      array: ends.map((e, k) => (e ? s.up(e[1]) - trace.y[k] : 0)),
      arrayminus: ends.map((e, k) => (e ? trace.y[k] - s.up(e[0]) : 0)),
    };
  }
  return trace;
}

function hover(i) {
  const { x, y } = drawn;
  const line = m =>
    escape(titleOf(m)) +
    ": " +
    number(value(m, i)) +
    noisy(m, i) +
    (changeText(m, i) ? "  (" + escape(changeText(m, i)) + ")" : "");
  return (
    "<b>" +
    escape(cut(cell("label", i), 90)) +
    "</b><br>" +
    (view.marks.get(i) || "") +
    "<br>" +
    distinct([y, x, "bits_per_weight"])
      .filter(m => m in data.metrics && value(m, i) !== null)
      .map(line)
      .join("<br>")
  );
}

// Of many points those that no other of their colour covers, by the marker's size on screen.
function thin(rows, ranges) {
  if (rows.length <= MOST_DOTS) return rows;
  const { x, y, s, look } = drawn,
    log = v => Math.log(v);
  const points = rows.map(i => [
    value(x, i),
    s.axis.type === "log" ? log(value(y, i)) : s.up(value(y, i)),
    i,
  ]);
  let inside = points;
  if (ranges) {
    const [a, b] = ranges.x,
      [c, d] = ranges.y;
    inside = points.filter(p => p[0] >= a && p[0] <= b && p[1] >= c && p[1] <= d);
  }
  const ends = k =>
    inside.reduce(([lo, hi], p) => [Math.min(lo, p[k]), Math.max(hi, p[k])], [Infinity, -Infinity]);
  const [x0, x1] = ends(0),
    [y0, y1] = ends(1),
    width = $("chart").clientWidth || 1000,
    height = 400;
  for (let size = 3; ; size *= 1.4) {
    const seen = new Map();
    for (const p of inside) {
      const key =
        Math.floor((((p[0] - x0) / (x1 - x0 || 1)) * width) / size) +
        " " +
        Math.floor((((p[1] - y0) / (y1 - y0 || 1)) * height) / size) +
        " " +
        look.get(cell("name", p[2]));
      if (!seen.has(key)) seen.set(key, p[2]);
    }
    if (seen.size <= MOST_DOTS) return [...seen.values()].sort((a, b) => a - b);
  }
}

function wire() {
  const chart = $("chart");
  chart.dataset.wired = "yes";
  chart.on("plotly_click", event => {
    const i = event.points[0].customdata;
    if (i !== undefined) openRow(i);
  });
  chart.on("plotly_hover", event => {
    drawn.hovered = event.points[0].customdata;
    overlay();
  });
  chart.on("plotly_unhover", () => {
    drawn.hovered = undefined;
    overlay();
  });
  chart.on("plotly_relayout", event => {
    const zoomed = Object.keys(event).some(key => /^[xy]axis\.(range|autorange)/.test(key));
    if (zoomed && drawn.many.some(rows => rows.length > MOST_DOTS) && !drawn.busy) {
      drawn.busy = true;
      const f = chart._fullLayout,
        log = a => (a.type === "log" ? a.range.map(v => 10 ** v) : a.range);
      const free = Object.keys(event).some(key => key.endsWith("autorange"));
      const yRange = f.yaxis.type === "log" ? f.yaxis.range.map(v => v * Math.LN10) : f.yaxis.range;
      const t = drawn.many.map(rows => dots(thin(rows, free ? null : { x: log(f.xaxis), y: yRange }), 1)),
        each = get => t.map(get);
      Plotly.restyle(
        chart,
        {
          x: each(t => t.x),
          y: each(t => t.y),
          text: each(t => t.text),
          customdata: each(t => t.customdata),
          "marker.size": each(t => t.marker.size),
          "marker.color": each(t => t.marker.color),
          "marker.symbol": each(t => t.marker.symbol),
          "marker.line.color": each(t => t.marker.line.color),
        },
        [1, 2, 3],
      ).then(() => {
        drawn.busy = false;
      });
    }
    overlay();
  });
  chart.on("plotly_afterplot", overlay);
}

function axisChoices() {
  for (const [axis, first] of [
    ["x", data.x],
    ["y", data.y],
  ]) {
    const rest = Object.keys(data.metrics).filter(m => !first.includes(m));
    const group = (label, names) =>
      make(
        "optgroup",
        { label },
        ...names.map(m => {
          const o = make("option", { text: titleOf(m) });
          o.value = m;
          return o;
        }),
      );
    $(axis).replaceChildren(
      ...first.map(m => {
        const o = make("option", { text: titleOf(m) });
        o.value = m;
        return o;
      }),
      group("every metric", rest),
    );
    $(axis).onchange = () => goTo({ [axis]: $(axis).value });
  }
  $("scope").onchange = () => goTo({ scope: $("scope").value });
}
