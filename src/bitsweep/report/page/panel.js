// One point, whole: what it is, what was measured and how, what made it, and how to make it again.
let opener = null;

function openRow(i) {
  opener = document.activeElement;
  goTo({ row: state.row === i ? null : i });
  if (state.row !== null) $("panel").querySelector("h2").focus({ preventScroll: true });
}
function closeRow() {
  const was = opener,
    line = `#table tr[data-row="${state.row}"] button`; // drawn again meanwhile
  goTo({ row: null });
  const back = was && was.isConnected && was !== document.body ? was : document.querySelector(line);
  (back ?? document.querySelector("#table tbody button"))?.focus({ preventScroll: true });
}

let showing = null;
function showPanel() {
  const panel = $("panel"),
    i = state.row;
  panel.hidden = i === null;
  document.body.classList.toggle("opened", i !== null);
  if (i === null) {
    showing = null;
    panel.replaceChildren();
    return;
  }
  const sight = JSON.stringify([i, view.x, view.y, view.marks.get(i)]);
  if (sight === showing) return;
  const same = showing !== null && JSON.parse(showing)[0] === i,
    scroll = panel.scrollTop;
  showing = sight;
  const mark = view.marks.get(i);
  panel.replaceChildren(
    make(
      "div",
      { class: "bar" },
      make(
        "div",
        {},
        make("h2", { id: "panel-title", tabindex: "-1", text: cell("label", i) }),
        make(
          "p",
          { class: "soft" },
          make("span", {
            class: "tag" + (measured(i) ? "" : " warn"),
            text: measured(i)
              ? mark === FRONT || mark === TIED || mark === DOMINATED
                ? mark === TIED
                  ? "within noise of the front"
                  : mark === FRONT
                    ? "on the front"
                    : "dominated"
                : mark || "measured"
              : cell("status", i),
          }),
          cell("model", i) + ", " + cell("experiment", i),
        ),
      ),
      make("button", { type: "button", text: "close", "aria-label": "close this point", onclick: closeRow }),
    ),
    ...(cell("reason", i) ? [make("p", { class: "failure", text: cell("reason", i) })] : []),
    ...acceptedOf(i),
    ...metricsOf(i),
    ...againOf(i),
    ...planOf(i),
    ...saidOf(i),
    ...configOf(i),
    ...madeOf(i),
  );
  panel.scrollTop = same ? scroll : 0;
}

const heading = text => make("h3", { text });
const list = pairs =>
  make("dl", {}, ...pairs.flatMap(([k, v]) => [make("dt", { text: k }), make("dd", { text: v })]));

const two = (text, ends) =>
  make("td", { class: "number", text }, ...(ends ? [make("small", { text: ends })] : []));

function metricsOf(i) {
  const signatures = data.signatures.of[cell("model", i)] || {},
    lines = [],
    without = new Map(); // reason -> the metrics that it leaves empty
  for (const m of distinct([view.y, view.x, ...data.begin, ...Object.keys(data.metrics)])) {
    if (!(m in data.metrics)) continue;
    const v = value(m, i),
      why = reason(m, i);
    if (v === null) {
      if (why) without.set(why, [...(without.get(why) || []), titleOf(m)]);
      continue;
    }
    const lo = value(m, i, "lo"),
      hi = value(m, i, "hi"),
      unit = data.metrics[m].unit;
    const name = make("td", { class: "left" });
    if (m in signatures)
      name.append(
        make(
          "details",
          {},
          make("summary", { text: titleOf(m) }),
          make("code", { text: data.signatures.texts[signatures[m]] }),
        ),
      );
    else name.textContent = titleOf(m);
    lines.push(
      make(
        "tr",
        {},
        name,
        two(
          number(v, 6) + (unit && !titleOf(m).includes(unit) ? " " + unit : "") + noisy(m, i),
          lo === null ? "" : "[" + number(lo, 4) + ", " + number(hi, 4) + "]",
        ),
        two(...changeText(m, i).split(/ (?=\[)/)),
      ),
    );
  }
  for (const [why, names] of without)
    lines.push(
      make(
        "tr",
        {},
        make("td", {
          class: "left",
          text: names[0] + (names.length > 1 ? " and " + (names.length - 1) + " more" : ""),
          title: names.join("; "),
        }),
        make("td", { class: "left", colspan: 2, text: why }),
      ),
    );
  if (!lines.length) return [];
  const head = make(
    "tr",
    {},
    ...["metric", "value [95\u00a0%]", "Δ to full precision [95\u00a0%]"].map((text, k) =>
      make("th", { scope: "col", text, class: k ? null : "left" }),
    ),
  );
  return [
    heading("metrics; opening one shows how it was measured"),
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines)),
    ...(data.trimmed
      ? [
          make("p", {
            class: "soft",
            text: "Intervals of values that have a paired change are left out of so large a page.",
          }),
        ]
      : []),
  ];
}

function acceptedOf(i) {
  const said = Object.entries(data.acceptance.parts)
    .map(([name, part]) => [name, at(part.said, i), at(part.reason, i)])
    .filter(([, verdict]) => verdict);
  if (!said.some(([, verdict]) => verdict !== "?")) return [];
  return [
    make(
      "details",
      { class: "section" },
      make("summary", {}, make("b", { text: "Acceptance" }), " " + (cell("acceptance", i) || "")),
      make("p", { class: "soft", text: "The line of the source articles: " + data.acceptance.line + "." }),
      list(said.map(([name, verdict, why]) => [name + " " + verdict, why || ""])),
    ),
  ];
}

function commandBox(text, label) {
  const button = make("button", { type: "button", text: "copy", "aria-label": "copy " + label });
  button.onclick = () => copy(text, button);
  return make("div", { class: "command" }, make("code", { text }), button);
}

const recordsOf = i => data.records.row.flatMap((row, k) => (row === i ? [k] : []));
const showLine = i => "bitsweep show " + data.columns.id[i];

function againOf(i) {
  const commands = distinct(
    recordsOf(i)
      .map(k => at(data.records.command, k))
      .filter(Boolean),
  );
  return [
    ...(commands.length
      ? [
          heading("make it again"),
          ...commands.map(c => commandBox(c, "the command")),
          ...(commands.some(c => c.includes("…/"))
            ? [
                make("p", {
                  class: "soft",
                  text: "Paths of the machine are shortened (…/); the Record has them.",
                }),
              ]
            : []),
        ]
      : []),
    heading("all of its Record"),
    commandBox(showLine(i), "the command"),
  ];
}
