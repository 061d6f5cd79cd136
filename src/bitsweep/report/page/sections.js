// Sensitivity, errors by depth, times, and what has no numbers.
const MOST_LINES = 24,
  MOST_NAMES = 25;
function hasBars() {
  const groups = data.bars.filter(b => b.model === state.model),
    own = groups.find(b => b.group === state.bars) || groups[0];
  if (own) $("bars").style.height = barsHeight(own) + "px";
  return groups.length > 0;
}
const barsHeight = own => 90 + 17 * own.parts.length;
const hasDepth = () => depthCurves().length > 0;
const hasTimes = () => data.latency.blocks.some(b => b.model === state.model);

function bars() {
  const groups = data.bars.filter(b => b.model === state.model),
    names = groups.map(b => b.group);
  fill($("bars-group"), names, names, state.bars);
  const own = groups[Math.max(0, names.indexOf(state.bars))],
    kinds = Object.keys(own.values).sort((a, b) => (b === own.by) - (a === own.by));
  fill(
    $("bars-by"),
    kinds,
    kinds.map(n => own.titles[n]),
    state.by,
  );
  const by = $("bars-by").value,
    values = own.values[by],
    lo = own.lo[by],
    hi = own.hi[by];
  const error =
    lo && lo.every(v => v !== null)
      ? {
          type: "data",
          symmetric: false,
          thickness: 1,
          color: css("--soft"),
          array: hi.map((v, i) => v - values[i]),
          arrayminus: lo.map((v, i) => values[i] - v),
        }
      : undefined;
  const height = barsHeight(own);
  Plotly.react(
    $("bars"),
    [
      {
        type: "bar",
        orientation: "h",
        x: values,
        y: own.parts.map(p => escape(cut(p, 60))),
        error_x: error,
        marker: { color: paint(0) },
        hovertemplate: "%{y}: %{x:.4g}<extra></extra>",
      },
    ],
    {
      ...frameOf(),
      margin: { l: 60, r: 20, t: 10, b: 40 },
      height,
      xaxis: { ...gridOf(), title: { text: escape(own.titles[by]) + (own.lo[by] ? ", nat per token" : "") } },
      yaxis: { autorange: "reversed", type: "category", dtick: 1, automargin: true, tickfont: { size: 11 } },
    },
    { ...CONFIG, displayModeBar: false },
  );
  $("bars").setAttribute("aria-label", "bars: " + own.titles[by] + " of each part");
  const known = Object.entries(own.ranks).filter(([, r]) => r !== null);
  $("ranks").textContent = known.length
    ? "Rank correlation (Spearman) with " +
      own.titles[own.by] +
      ": " +
      known.map(([n, r]) => own.titles[n] + " " + r.toFixed(2).replace("-", "−")).join(", ") +
      "."
    : "";
}

function depthCurves() {
  const shown = new Set(view.rows.map(i => cell("label", i)));
  return data.curves.filter(c => c.model === state.model && shown.has(c.label));
}

function depth() {
  const all = depthCurves(),
    rank = new Map(view.rows.map(i => [cell("label", i), [FRONT, TIED].includes(view.marks.get(i)) ? 0 : 1]));
  const own = [...all].sort((a, b) => rank.get(a.label) - rank.get(b.label)).slice(0, MOST_LINES);
  Plotly.react(
    $("depth"),
    own.map((c, k) => ({
      x: c.errors.map((_, i) => i),
      y: c.errors.map(v => (v > 0 ? v : null)),
      mode: "lines+markers",
      name: escape(cut(c.label, 60)),
      line: {
        color: paint(k % LIGHT.length),
        dash: ["solid", "dash", "dot"][Math.floor(k / LIGHT.length) % 3],
      },
      marker: { symbol: SYMBOLS[k % LIGHT.length], size: 6 },
      hovertemplate: escape(cut(c.label, 60)) + "<br>%{x} blocks: %{y:.4g}<extra></extra>",
    })),
    {
      ...frameOf(),
      margin: { l: 60, r: 20, t: 10, b: 45 },
      showlegend: true,
      legend: innerWidth < 900 ? { orientation: "h", y: -0.2, font: { size: 11 } } : { font: { size: 11 } },
      xaxis: {
        ...gridOf(),
        title: { text: "blocks behind it" },
        dtick: own[0].errors.length > 20 ? undefined : 1,
      },
      yaxis: { ...gridOf(), type: "log", exponentformat: "power", title: { text: "relative error" } },
    },
    CONFIG,
  );
  const rest = all.length - own.length + data.curves_left;
  $("depth-said").textContent =
    rest > 0
      ? "Drawn are " +
        own.length +
        ", those on or near the front first; " +
        plural(rest, "more", "more") +
        " match."
      : "";
}

function times() {
  const t = data.latency,
    own = t.blocks.filter(b => b.model === state.model);
  $("times").replaceChildren(
    ...own.map(block =>
      make(
        "div",
        { class: "wide" },
        make(
          "table",
          {},
          make("caption", { text: block.name }),
          make(
            "thead",
            {},
            make(
              "tr",
              {},
              ...t.heads.map((h, i) =>
                make("th", { scope: "col", text: h, class: t.left[i] ? "left" : null }),
              ),
            ),
          ),
          make(
            "tbody",
            {},
            ...block.lines.map((cells, n) =>
              make(
                "tr",
                { class: block.front[n] ? "front" : null },
                ...cells.map((c, i) => make("td", { text: c, class: t.left[i] ? "left" : null })),
              ),
            ),
          ),
        ),
        block.more
          ? make("p", { class: "soft", text: plural(block.more, "more row") + " in tables/latency.csv" })
          : null,
      ),
    ),
    ...t.notes.map(text => make("p", { class: "soft", text: cut(text, 900) })),
  );
}

function missing() {
  const grouped = new Map(),
    add = (why, name) => {
      if (!grouped.has(why)) grouped.set(why, []);
      grouped.get(why).push(name);
    };
  for (const i of view.rows) {
    const name = cell("label", i);
    if (!measured(i)) add(cell("status", i) + ": " + firstLine(cell("reason", i)), name);
    else if (!reference(i))
      for (const why of distinct(
        Object.keys(data.reasons)
          .map(m => reason(m, i))
          .filter(Boolean),
      ))
        add("empty cells: " + why, name);
  }
  for (const [name, why] of data.merged) add("merged: " + why, name);
  $("missing").replaceChildren(
    ...[...grouped].map(([why, names]) =>
      make(
        "li",
        {},
        make("b", { text: plural(names.length, "point") }),
        " " + why,
        make("div", {
          class: "soft",
          text:
            names.slice(0, MOST_NAMES).join(", ") +
            (names.length > MOST_NAMES ? " and " + plural(names.length - MOST_NAMES, "other") : ""),
        }),
      ),
    ),
  );
  $("missing-section").hidden = grouped.size === 0;
}
