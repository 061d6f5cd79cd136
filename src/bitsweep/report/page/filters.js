// Chips: none pressed shows all, pressing one shows it alone, pressing more adds them.
const MOST_CHIPS = 60;

function values(axis) {
  const found = distinct(
    rowsOf(state.model)
      .filter(i => !reference(i))
      .map(i => facetOf(axis, i)),
  );
  const numeric = found.every(v => v === "none" || (v !== "" && !isNaN(v.replace(/^g/, ""))));
  const key = v => Number(v.replace(/^g/, ""));
  return found.sort(
    (a, b) =>
      (a === "none") - (b === "none") ||
      (numeric ? key(a) - key(b) : natural(a, b)),
  );
}

function chip(text, pressed, press) {
  return make("button", {
    type: "button",
    class: "chip",
    text,
    title: text,
    "aria-pressed": String(pressed),
    onclick: press,
  });
}

function field(axis, chips) {
  return make(
    "fieldset",
    {},
    make("legend", { text: titleOf(axis), title: axis === "accepted" ? data.acceptance.line : null }),
    make("div", { class: "chips" }, ...chips),
  );
}

function facet(axis) {
  const found = values(axis),
    on = state.facets[axis] || new Set();
  for (const v of on) if (!found.includes(v)) found.push(v); // of a link to another model
  if ((found.length < 2 && !on.size) || found.length > MOST_CHIPS) return null;
  return field(
    axis,
    found.map(v =>
      chip(v, on.has(v), () => {
        const set = new Set(on);
        set.has(v) ? set.delete(v) : set.add(v);
        const facets = { ...state.facets, [axis]: set };
        if (!set.size) delete facets[axis];
        goTo({ facets });
      }),
    ),
  );
}

// Whether the acceptance line has a verdict on any row that is more than a missing number.
const accepting = () => view.all.some(i => ["surely", "yes", "no"].includes(cell("accepted", i)));

function filters() {
  const focused =
    document.activeElement && document.activeElement.closest("#filters")
      ? document.activeElement.closest("fieldset").querySelector("legend").textContent +
        "|" +
        document.activeElement.textContent
      : null;
  const open = $("filters").querySelector("details")?.open;
  const one = models();
  const main = SIDES.map(axis =>
    axis !== "model"
      ? facet(axis)
      : one.length < 2
        ? null
        : field(
            "model",
            one.map(m => chip(m, m === state.model, () => goTo({ model: m, facets: kept(m) }))),
          ),
  );
  const others = data.axes.filter(
    axis => !SIDES.includes(axis) && !["group_size", "misfit", "label"].includes(axis),
  );
  const rest = [...(accepting() ? ["accepted"] : []), ...others]
    .map(facet)
    .filter(Boolean);
  const pressed = Object.keys(state.facets).some(axis => !SIDES.includes(axis));
  const more = rest.length
    ? make(
        "details",
        { class: "more", open: open || pressed },
        make("summary", { text: "more filters" }),
        make("div", {}, ...rest),
      )
    : null;
  $("filters").replaceChildren(...main.filter(Boolean), ...(more ? [more] : []));
  if (focused)
    for (const b of $("filters").querySelectorAll("button"))
      if (b.closest("fieldset").querySelector("legend").textContent + "|" + b.textContent === focused)
        b.focus();
  if (document.activeElement !== $("search")) $("search").value = state.words;
  const shown = view.rows.filter(i => !reference(i)).length,
    all = view.all.filter(i => !reference(i)).length;
  $("count").textContent =
    shown === all ? plural(all, "point") : shown.toLocaleString("en") + " of " + plural(all, "point");
  $("clear").hidden = !Object.keys(state.facets).length && !state.words;
}

// The chosen values that another model has, too.
function kept(model) {
  const found = {};
  for (const [axis, set] of Object.entries(state.facets)) {
    const there = new Set(rowsOf(model).map(i => facetOf(axis, i)));
    const own = [...set].filter(v => there.has(v));
    if (own.length) found[axis] = new Set(own);
  }
  return found;
}
