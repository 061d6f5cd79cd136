// What the reader chose. It stands in the link, so that a link, a bookmark and Back restore it.
const SIDES = ["model", "experiment", "method", "bits", "group", "policy"];
const ALONE = "one part alone";
let state = null,
  view = null;

function blank() {
  return {
    model: models()[0],
    facets: {},
    words: "",
    x: null,
    y: null,
    scope: "shown",
    heat: null,
    columns: null,
    sort: null,
    row: null,
    theme: remembered(),
    bars: null,
    by: null,
  };
}

const models = () => distinct(data.columns.model.i.map(k => data.columns.model.v[k]));
const facetOf = (axis, i) => {
  if (axis === "policy" && partOf(i) !== null) return ALONE;
  const v = cell(axis, i);
  return v === null || v === "" ? "none" : String(v);
};

function link() {
  const p = new URLSearchParams(),
    first = blank();
  const put = (key, value, usual) => {
    if (value !== null && value !== usual) p.set(key, value);
  };
  put("model", state.model, first.model);
  put("x", state.x, null);
  put("y", state.y, null);
  put("front", state.scope, "shown");
  put("find", state.words, "");
  put("heat", state.heat, null);
  put("sort", state.sort && (state.sort.up ? "" : "-") + state.sort.key, null);
  put("bars", state.bars, null);
  put("by", state.by, null);
  put("theme", state.theme, remembered());
  put("row", state.row === null ? null : data.columns.id[state.row], null);
  for (const [axis, set] of Object.entries(state.facets)) for (const v of set) p.append("is." + axis, v);
  if (state.columns) for (const name of state.columns) p.append("column", name);
  return "#" + p.toString();
}

function read() {
  const p = new URLSearchParams(location.hash.slice(1)),
    found = blank();
  if (models().includes(p.get("model"))) found.model = p.get("model");
  for (const axis of ["x", "y", "heat"]) if (p.get(axis) in data.metrics) found[axis] = p.get(axis);
  if (p.get("front") === "all") found.scope = "all";
  found.words = p.get("find") || "";
  found.bars = p.get("bars");
  found.by = p.get("by");
  if (["auto", "light", "dark"].includes(p.get("theme"))) found.theme = p.get("theme");
  const sort = p.get("sort");
  if (sort) found.sort = { key: sort.replace(/^-/, ""), up: !sort.startsWith("-") };
  for (const axis of [...SIDES, "accepted", ...data.axes]) // an old link's may be gone
    if (p.has("is." + axis)) found.facets[axis] = new Set(p.getAll("is." + axis));
  const known = new Set(columnNames()),
    columns = p.getAll("column").filter(name => known.has(name));
  if (columns.length) found.columns = columns;
  const row = p.has("row") ? data.columns.id.findIndex(id => id.startsWith(p.get("row"))) : -1;
  if (row >= 0 && p.get("row").length >= 4) {
    found.row = row;
    found.model = cell("model", row);
  }
  return found;
}

// A step that Back undoes, or for typing a change of the present one.
function goTo(changes, step = true) {
  Object.assign(state, changes);
  const to = link();
  try {
    if (to !== (location.hash || "#")) history[step ? "pushState" : "replaceState"](null, "", to);
  } catch {
    /* in a frame without an address of its own there is no link to keep */
  }
  draw();
}

function remembered() {
  try {
    return localStorage.getItem("bitsweep-theme") || "auto";
  } catch {
    return "auto";
  }
}
const dark = () =>
  state.theme === "dark" || (state.theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
function dress() {
  document.documentElement.dataset.theme = dark() ? "dark" : "light";
  $("theme").textContent = { auto: "◐ as the system", light: "☀ light", dark: "☾ dark" }[state.theme];
  $("theme").setAttribute("aria-label", "colours: " + state.theme + "; change");
}
function nextTheme() {
  const theme = { auto: dark() ? "light" : "dark", light: "dark", dark: "auto" }[state.theme];
  try {
    localStorage.setItem("bitsweep-theme", theme);
  } catch {
    /* the link keeps it */
  }
  goTo({ theme }, false);
}

// The two metrics of the front: those chosen, if the model has them, else its own first ones.
function axes(all) {
  const has = m => m in data.metrics && all.some(i => !reference(i) && value(m, i) !== null);
  const y = [state.y, data.primaries[state.model], ...data.y].find(has),
    x = [state.x, ...data.x].find(m => has(m) && m !== y);
  return [x ?? data.x[0], y ?? data.y[0]];
}

// Rows that pass the filters, and their marks.
function look() {
  const all = rowsOf(state.model),
    facets = Object.entries(state.facets).filter(([, set]) => set.size);
  const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
  const alone =
    all.every(i => partOf(i) !== null || reference(i)) ||
    (state.facets.policy || new Set()).has(ALONE) ||
    (state.facets.only || new Set()).size > 0;
  const rows = all.filter(
    i =>
      reference(i) ||
      ((alone || partOf(i) === null) &&
        facets.every(([axis, set]) => set.has(facetOf(axis, i))) &&
        (!words.length || words.every(word => text(i).includes(word)))),
  );
  const [x, y] = axes(all),
    marks = front(state.scope === "all" ? all : rows, x, y);
  return { rows, marks, all, x, y };
}

const texts = [];
function text(i) {
  return (texts[i] ??= [
    cell("label", i),
    cell("full", i),
    cell("weights", i),
    cell("status", i),
    data.columns.id[i],
  ]
    .join(" ")
    .toLowerCase());
}
