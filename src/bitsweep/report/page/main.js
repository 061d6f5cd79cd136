// A change draws what is in sight; the rest waits until it is scrolled to.
const PARTS = [
  ["chart-section", chart, hasChart],
  ["best-section", best, null],
  ["maps-section", heat, hasHeat],
  ["bars-section", bars, hasBars],
  ["depth-section", depth, hasDepth],
  ["times-section", times, hasTimes],
  ["table-section", table, null],
  ["missing-section", missing, null],
].map(([id, draw, has]) => ({ id, draw, has, due: true, near: false }));
const LATER = new Set([chart, bars, depth]); // need plotly; their height is known before they are drawn

let sight = null; // what the parts but table and panel depend on

function draw() {
  dress();
  view = look();
  filters();
  const facets = Object.entries(state.facets).map(([axis, set]) => [axis, ...set]);
  const now = JSON.stringify([
    state.model,
    facets,
    state.words,
    state.scope,
    state.heat,
    state.bars,
    state.by,
    view.x,
    view.y,
    dark(),
    innerWidth < 700,
  ]);
  const same = now === sight;
  sight = now;
  $("x").value = view.x;
  $("y").value = view.y;
  $("scope").value = state.scope;
  for (const part of PARTS) {
    if (same && part.draw !== table) continue;
    if (part.has) $(part.id).hidden = !part.has();
    part.due = true;
    if (part.near || !LATER.has(part.draw)) settle(part);
  }
  showPanel();
  if (same && drawn) overlay();
}

function settle(part) {
  if (!part.due || (part.has && $(part.id).hidden) || (!window.Plotly && LATER.has(part.draw))) return;
  part.due = false;
  part.draw();
}

async function begin() {
  data = JSON.parse(await unpack("data"));
  Object.assign(data.columns, { accepted: data.acceptance.passes, acceptance: data.acceptance.text });
  $("title").textContent = data.title;
  $("question").textContent = data.question;
  document.title = data.title;
  for (const line of data.small) $("footer").append(make("div", { text: line }));
  state = blank();
  view = look();
  state = read();
  axisChoices();
  wireTable();
  $("search").oninput = () => goTo({ words: $("search").value }, false);
  $("clear").onclick = () => goTo({ facets: {}, words: "" });
  $("heat").onchange = () => goTo({ heat: $("heat").value });
  $("bars-group").onchange = () => goTo({ bars: $("bars-group").value });
  $("bars-by").onchange = () => goTo({ by: $("bars-by").value });
  $("theme").onclick = nextTheme;
  $("copy-link").onclick = () => copy(location.href, $("copy-link"));
  addEventListener("popstate", () => {
    state = read();
    draw();
  });
  addEventListener("keydown", event => {
    if (event.key === "Escape" && state.row !== null) closeRow();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  matchMedia("(max-width: 700px)").addEventListener("change", draw);
  addEventListener("beforeprint", () => PARTS.forEach(settle));
  $("failure").remove();
  draw();
  const script = document.createElement("script");
  script.textContent = await unpack("plotly");
  document.head.append(script);
  const watch = new IntersectionObserver(
    seen =>
      seen.forEach(entry => {
        const part = PARTS.find(p => p.id === entry.target.id);
        part.near = entry.isIntersecting;
        if (part.near) settle(part);
      }),
    { rootMargin: "300px" },
  );
  let waiting = null; // plotly follows the window alone, not the panel that takes of the width
  new ResizeObserver(() => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      for (const id of ["chart", "bars", "depth"])
        if ($(id)._fullLayout && $(id).clientWidth) Plotly.Plots.resize($(id));
    }, 60);
  }).observe($("main"));
  PARTS.forEach(part => watch.observe($(part.id)));
  settle(PARTS[0]);
  document.documentElement.dataset.ready = "yes";
}

begin().catch(error => {
  const box = $("failure") || make("p", { id: "failure", class: "failure", role: "alert" });
  box.textContent =
    typeof DecompressionStream === "undefined"
      ? "This page needs a browser of 2023 or later (DecompressionStream)."
      : "The page could not be drawn: " + error;
  if (!box.isConnected) $("main").prepend(box);
  throw error;
});
