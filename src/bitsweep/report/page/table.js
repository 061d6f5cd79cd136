// All points: any column, sorted by any, and only the rows in sight are in the page.
const ROW = 29,
  SPARE = 12,
  LEFT = new Set(["full", "weights", "policy", "front", "label", "model", "experiment", "status", "reason"]);
let sorted = [],
  shownColumns = [],
  from = -1;

function columnNames() {
  const own = ["full", "weights", "group", "front", "label", "accepted", "acceptance"];
  const metrics = Object.keys(data.metrics).flatMap(m => (data.metrics[m].delta ? [m, m + " Δ"] : [m]));
  return distinct([...own, ...data.config, "id", ...metrics]);
}
function usualColumns() {
  const several = axis => distinct(view.all.filter(i => !reference(i)).map(i => cell(axis, i))).length > 1;
  const quality = data.primaries[state.model] || data.y[0],
    begin = data.begin.filter(m => view.all.some(i => value(m, i) !== null));
  const numbers = distinct([
    ...begin.filter(m => data.x.includes(m)),
    view.x,
    ...(quality ? [quality] : []),
    view.y,
    ...begin,
  ]).filter(m => m in data.metrics);
  return [
    "full",
    "weights",
    "policy",
    ...(data.columns.experiment.v.length > 1 ? ["experiment"] : []),
    ...(data.columns.only && several("only") ? ["only"] : []),
    "front",
    ...numbers.flatMap(m =>
      data.metrics[m].delta && m !== "file_mib" && m !== "bits_per_weight" ? [m, m + " Δ"] : [m],
    ),
  ];
}
const headOf = name => (name.endsWith(" Δ") ? "Δ " + titleOf(name.slice(0, -2)) : titleOf(name));

function key(name, i) {
  if (name === "front") return measured(i) ? view.marks.get(i) || "" : cell("status", i);
  if (name === "id") return data.columns.id[i];
  if (name.endsWith(" Δ")) {
    const found = change(name.slice(0, -2), i);
    return found && found[0];
  }
  if (name in data.metrics) return value(name, i);
  return cell(name, i);
}
function shown(name, i) {
  if (name.endsWith(" Δ")) return changeText(name.slice(0, -2), i);
  const v = key(name, i);
  return v === true ? "yes" : v === false ? "no" : number(v) + noisy(name, i);
}

const MARKS = [FRONT, TIED, DOMINATED, "reference"];
function order(rows) {
  if (!state.sort) return rows;
  const { key: name, up } = state.sort,
    keys = new Map(rows.map(i => [i, key(name, i)]));
  const rank = v => (name === "front" ? MARKS.indexOf(v) + 1 || 9 : v);
  return [...rows].sort((a, b) => {
    let p = keys.get(a),
      q = keys.get(b);
    if (p === null || p === undefined || p === "")
      return q === null || q === undefined || q === "" ? a - b : 1;
    if (q === null || q === undefined || q === "") return -1;
    p = rank(p);
    q = rank(q);
    const by = typeof p === "number" && typeof q === "number" ? p - q : natural(p, q);
    return (up ? by : -by) || a - b;
  });
}

// Of a head in two or three lines: its longest word, at least a third of it.
const widest = head =>
  Math.max(Math.ceil(head.length / 2.5), ...head.split(" ").map(word => word.length)) + 1;

// Pixels of a text in a cell, in whatever font the reader has.
function measure() {
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = "13px " + getComputedStyle(document.body).fontFamily;
  return text => pen.measureText(text).width;
}

function table() {
  shownColumns = state.columns || usualColumns();
  sorted = order(view.rows);
  const sample = sorted.filter((_, k) => k % Math.ceil(sorted.length / 400) === 0),
    pixels = measure(),
    digit = pixels("0");
  const widths = shownColumns.map((name, c) => {
    const longest = sample.map(i => shown(name, i)).reduce((a, b) => (b.length > a.length ? b : a), "");
    const most = c === 0 && innerWidth < 700 ? 18 : 46;
    return Math.ceil(Math.min(most * digit, Math.max(widest(headOf(name)) * digit, pixels(longest) + 8)) + 22);
  });
  const [cols, head, body] = $("table").children;
  cols.replaceChildren(...widths.map(w => make("col", { style: "width:" + w + "px" })));
  $("table").style.width = widths.reduce((sum, w) => sum + w, 0) + "px";
  $("table").style.minWidth = "100%";
  const focused = document.activeElement?.closest?.("#table thead")
    ? document.activeElement.dataset.key
    : null;
  head.replaceChildren(
    make(
      "tr",
      {},
      ...shownColumns.map(name => {
        const on = state.sort && state.sort.key === name;
        const button = make("button", {
          type: "button",
          "data-key": name,
          text: headOf(name) + (on ? (state.sort.up ? " ↑" : " ↓") : ""),
          title: "sort by " + headOf(name),
          onclick: () =>
            goTo({ sort: !on ? { key: name, up: true } : state.sort.up ? { key: name, up: false } : null }),
        });
        return make(
          "th",
          {
            scope: "col",
            class: LEFT.has(name) || isText(name) ? "left" : null,
            "aria-sort": on ? (state.sort.up ? "ascending" : "descending") : "none",
          },
          button,
        );
      }),
    ),
  );
  if (focused) [...head.querySelectorAll("button")].find(b => b.dataset.key === focused)?.focus();
  $("table").setAttribute("aria-rowcount", sorted.length + 1);
  from = -1;
  slice();
  const refused = sorted.filter(i => !measured(i)).length;
  $("table-said").textContent =
    plural(sorted.length, "row") +
    (refused ? ", " + refused.toLocaleString("en") + " without numbers" : "") +
    ". A click on a head sorts, on a row opens it; Δ is the change to full precision with its 95 % interval.";
}

const isText = name => data.columns[name] && !Array.isArray(data.columns[name]);

const MOST_PRINTED = 1000;
let printing = false;
function print(now) {
  printing = now;
  slice(true);
}

function slice(again = false) {
  const box = $("scroller"),
    count = printing ? MOST_PRINTED : Math.ceil(Math.max(box.clientHeight, 640) / ROW) + 2 * SPARE;
  const first = Math.max(0, Math.min(sorted.length - count, Math.floor(box.scrollTop / ROW) - SPARE));
  if (first === from && !again) return;
  from = first;
  const last = Math.min(sorted.length, first + count),
    body = $("table").tBodies[0];
  const focused = document.activeElement?.closest?.("#table tbody tr")?.dataset.row;
  const gap = rows =>
    rows > 0
      ? make(
          "tr",
          { class: "gap", "aria-hidden": "true" },
          make("td", { colspan: shownColumns.length, style: "height:" + rows * ROW + "px" }),
        )
      : null;
  const lines = [];
  for (let k = first; k < last; k++) {
    const i = sorted[k];
    const line = make("tr", {
      "aria-rowindex": k + 2,
      "data-row": i,
      class:
        [view.marks.get(i) === FRONT ? "front" : "", state.row === i ? "open" : ""].join(" ").trim() || null,
    });
    shownColumns.forEach((name, c) => {
      const said = shown(name, i),
        td = make("td", { class: LEFT.has(name) || isText(name) ? "left" : null });
      if (c === 0)
        td.append(
          make("button", {
            type: "button",
            class: "link",
            text: said || data.columns.id[i],
            title: cell("label", i),
          }),
        );
      else {
        td.textContent = said;
        td.title = said === "" && name in data.metrics ? reason(name, i) || "" : said;
      }
      line.append(td);
    });
    lines.push(line);
  }
  body.replaceChildren(...[gap(first), ...lines, gap(sorted.length - last)].filter(Boolean));
  if (focused) body.querySelector(`tr[data-row="${focused}"] button`)?.focus({ preventScroll: true });
}

function columns() {
  const on = new Set(shownColumns),
    box = (name, title) => {
      const input = make("input", { type: "checkbox" });
      input.checked = on.has(name);
      input.onchange = () => {
        const now = columnNames().filter(n => (n === name ? input.checked : on.has(n))),
          kept = shownColumns.filter(n => now.includes(n));
        goTo({
          columns: [...kept, ...now.filter(n => !kept.includes(n))].length
            ? [...kept, ...now.filter(n => !kept.includes(n))]
            : null,
        });
        columns();
      };
      return make("label", {}, input, " ", title);
    };
  const every = columnNames(),
    metrics = every.filter(n => n.replace(/ Δ$/, "") in data.metrics),
    rest = every.filter(n => !metrics.includes(n));
  $("columns").replaceChildren(
    make("button", {
      type: "button",
      text: "the usual ones",
      onclick: () => {
        goTo({ columns: null });
        columns();
      },
    }),
    make("h3", { text: "metrics" }),
    make("div", {}, ...metrics.map(n => box(n, headOf(n)))),
    make("h3", { text: "the point" }),
    make("div", {}, ...rest.map(n => box(n, headOf(n)))),
  );
}

function save() {
  const field = v => {
    const text = v === null || v === undefined ? "" : String(v),
      s = typeof v === "string" && /^[=+\-@\t\r]/.test(text) ? "'" + text : text; // no formula
    return /[",\n\r]/.test(s) ? '"' + s.replace(/"/g, '""') + '"' : s;
  };
  const lines = [
    shownColumns.map(field).join(","),
    ...sorted.map(i => shownColumns.map(name => field(key(name, i))).join(",")),
  ];
  const url = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
  make("a", { href: url, download: data.title.replace(/[^\w+.-]+/g, "-") + ".csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 5000);
}

function wireTable() {
  let waiting = false;
  $("scroller").addEventListener("scroll", () => {
    if (!waiting) {
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        slice();
      });
    }
  });
  $("table").addEventListener("click", event => {
    const line = event.target.closest("tr[data-row]");
    if (line && !getSelection().toString()) openRow(Number(line.dataset.row));
  });
  $("table").addEventListener("keydown", event => {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 15, PageUp: -15 }[event.key],
      line = event.target.closest("tr[data-row]");
    if (!step || !line) return;
    event.preventDefault();
    const to = Math.max(0, Math.min(sorted.length - 1, sorted.indexOf(Number(line.dataset.row)) + step)),
      box = $("scroller");
    if ((to + 2) * ROW > box.scrollTop + box.clientHeight - ROW)
      box.scrollTop = (to + 3) * ROW - box.clientHeight + ROW;
    if (to * ROW < box.scrollTop) box.scrollTop = to * ROW;
    slice();
    document.querySelector(`#table tr[data-row="${sorted[to]}"] button`)?.focus({ preventScroll: true });
  });
  $("choose").onclick = () => {
    const open = $("columns").hidden;
    if (open) columns();
    $("columns").hidden = !open;
    $("choose").setAttribute("aria-expanded", String(open));
  };
  $("save").onclick = save;
}
