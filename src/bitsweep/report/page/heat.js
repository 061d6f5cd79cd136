// Method × bits: the change to full precision, a panel for each policy and group.
const PANELS = 8,
  LINES = 60;
let most = { panels: PANELS, lines: LINES };

function shade(change, better) {
  const worse = better === "higher" ? -change : change;
  const t = Math.min(1, Math.asinh(Math.abs(worse) / 0.1) / Math.asinh(2000)),
    far = worse > 0 ? [214, 96, 77] : [67, 147, 195];
  return "rgb(" + far.map(c => Math.round(247 + (c - 247) * t)).join(",") + ")";
}

// Of a text or a task: a size or a time has its own section.
const heatMetrics = () =>
  Object.keys(data.metrics).filter(
    m => m.includes("/") && data.metrics[m].delta && data.metrics[m].better !== "none",
  );
const heatMetric = () => state.heat || data.primaries[state.model] || data.heat || heatMetrics()[0];
const inHeat = i =>
  !reference(i) && cell("bits", i) !== null && partOf(i) === null && cell("method", i) !== "full_precision";

function hasHeat() {
  const metric = heatMetric();
  return metric in data.metrics && view.rows.some(i => inHeat(i) && value(metric, i, "d") !== null);
}

function heat() {
  const metric = heatMetric(),
    rows = view.rows.filter(i => inHeat(i));
  const names = heatMetrics();
  fill($("heat"), names, names.map(titleOf), metric);
  $("heat-said").textContent =
    "The change from full precision" +
    (data.metrics[metric].delta === "ratio" ? " in per cent" : "") +
    "; blue is better, red is worse, framed: the best of its column. " +
    "Hatched: no number; its reason is on the cell.";
  const panels = new Map();
  for (const i of rows) {
    const key = [
      cell("policy", i) || "",
      cell("misfits", i) ? cell("misfit", i) || "" : "",
      cell("group", i) || "",
    ]
      .filter(Boolean)
      .join(", ");
    panels.set(key, [...(panels.get(key) || []), i]);
  }
  const filled = [...panels].filter(([, own]) =>
    own.some(i => value(metric, i, "d") !== null || !measured(i)),
  );
  const shown = filled.slice(0, most.panels).map(([key, own]) => panel(key, own, metric));
  const all = () => {
    most = { panels: Infinity, lines: Infinity };
    heat();
  };
  if (filled.length > most.panels || shown.some(made => "cut" in made.dataset))
    shown.push(
      make("button", {
        type: "button",
        text: "show all " + plural(filled.length, "panel") + " and methods",
        onclick: all,
      }),
    );
  $("maps").replaceChildren(...shown);
  $("maps-said").textContent = "";
}

function panel(title, rows, metric) {
  const bits = distinct(rows.map(i => cell("bits", i))).sort((a, b) => a - b);
  const byName = new Map();
  for (const i of rows) {
    const name = cell("name", i);
    if (!byName.has(name)) byName.set(name, new Map());
    const own = byName.get(name),
      b = cell("bits", i);
    own.set(b, [...(own.get(b) || []), i]);
  }
  const head = make(
    "tr",
    {},
    make("th", { text: "" }),
    ...bits.map(b => make("th", { scope: "col", text: b + (b === 1 ? " bit" : " bits") })),
  );
  const lines = [...byName]
    .slice(0, most.lines)
    .map(([name, own]) =>
      make(
        "tr",
        {},
        make("th", { scope: "row", class: "left", text: name, title: name }),
        ...bits.map(b => make("td", {}, spot(own.get(b) || [], name, b, metric))),
      ),
    );
  bits.forEach((_, k) => {
    const own = lines.map(line => line.children[k + 1].firstChild).filter(cell => "worse" in cell.dataset);
    const least = Math.min(...own.map(cell => cell.dataset.worse));
    if (own.length > 1) own.find(cell => Number(cell.dataset.worse) === least).classList.add("best");
  });
  return make(
    "div",
    { class: "wide", "data-cut": byName.size > most.lines },
    make(
      "table",
      {},
      make("caption", { text: title || "all" }),
      make("thead", {}, head),
      make("tbody", {}, ...lines),
    ),
  );
}

function spot(rows, name, b, metric) {
  if (!rows.length)
    return make("span", { class: "absent", title: name + " at " + b + " bits: not in the grid", text: "·" });
  const known = rows
    .filter(i => value(metric, i, "d") !== null)
    .sort((a, c) => Math.abs(value(metric, a, "d")) - Math.abs(value(metric, c, "d")));
  if (known.length) {
    const better = data.metrics[metric].better,
      all = known.map(i => change(metric, i)[0]).sort((a, c) => a - c),
      middle = all[Math.floor((all.length - 1) / 2)];
    const i = known.find(k => change(metric, k)[0] === middle),
      said =
        cell("label", i) +
        ": " +
        changeText(metric, i) +
        (known.length > 1 ? "; the middle one of " + known.length : "");
    return make("button", {
      type: "button",
      text: signed(middle) + (known.length > 1 ? " ×" + known.length : ""),
      title: said,
      "aria-label": said,
      "data-worse": better === "higher" ? -middle : middle,
      style: "background:" + shade(middle, better),
      onclick: () => openRow(i),
    });
  }
  const why =
    cell("label", rows[0]) +
    ": " +
    (measured(rows[0])
      ? reason(metric, rows[0]) || "not measured"
      : cell("status", rows[0]) + ": " + firstLine(cell("reason", rows[0])));
  const word = measured(rows[0]) ? "empty" : cell("status", rows[0]);
  return make("button", {
    type: "button",
    class: "none",
    text: word,
    title: why,
    "aria-label": why,
    onclick: () => {
      $("maps-said").textContent = why;
    },
    onfocus: () => {
      $("maps-said").textContent = why;
    },
  });
}

const firstLine = text => String(text || "").split("\n")[0];
