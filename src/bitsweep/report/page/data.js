// The data as payload.py packed it: columns, not rows. A row is its place in them.
let data = null;

async function unpack(id) {
  const text = atob($(id).textContent),
    bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  $(id).remove();
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function at(column, i) {
  if (!column) return null;
  if (Array.isArray(column)) return column[i];
  return column.i[i] < 0 ? null : column.v[column.i[i]];
}
const cell = (name, i) => at(data.columns[name], i);
const value = (metric, i, end = "v") => {
  const ends = data.numbers[metric],
    list = ends && ends[end];
  return list ? list[i] : null;
};
const reason = (metric, i) => at(data.reasons[metric], i);
const titleOf = name => (name in data.metrics ? data.metrics[name].title : HEADS[name] || name);
const measured = i => cell("status", i) === "ok";
const reference = i => data.columns.reference[i] === 1;
const isTime = metric => /^(decode|prefill)_/.test(metric); // as timing.py has it
const noisy = (metric, i) =>
  isTime(metric) && data.columns.noisy[i] && value(metric, i) !== null ? " noisy" : "";
const partOf = i => cell("only", i);

const HEADS = {
  name: "method",
  full: "method",
  label: "point",
  only: "part alone",
  accepted: "accepted",
  acceptance: "acceptance line",
  id: "run_id",
  group_size: "group size",
};

// What a number is worth: the paired interval where there is one, else its own. null where none.
function interval(metric, i) {
  const v = value(metric, i),
    d = value(metric, i, "d"),
    ends = ["dlo", "dhi"].map(end => value(metric, i, end));
  if (d !== null && ends[0] !== null && ends[0] !== ends[1])
    return data.metrics[metric].delta === "ratio"
      ? ends.map(end => (v / d) * end)
      : ends.map(end => v + (end - d));
  const own = [value(metric, i, "lo"), value(metric, i, "hi")];
  return d === null && own[0] !== null && own[0] !== own[1] ? own : null;
}

// The change to full precision, with its interval: in per cent for a ratio, else as it is.
function change(metric, i) {
  const ends = ["d", "dlo", "dhi"].map(end => value(metric, i, end));
  if (ends[0] === null || reference(i)) return null;
  return data.metrics[metric].delta === "ratio" ? ends.map(end => (end - 1) * 100) : ends;
}
function changeText(metric, i) {
  const found = change(metric, i);
  if (!found) return "";
  const unit = data.metrics[metric].delta === "ratio" ? " %" : "",
    digits = places(found[0]),
    [lo, hi] = found.slice(1).map(end => signed(end, digits));
  return (
    signed(found[0]) +
    unit +
    (found[1] !== found[2] ? " [" + lo + ", " + hi + "]" : "")
  );
}

// Full precision's own value of a metric, for a model: the one that changes are against.
const bases = new Map();
function base(model, metric) {
  const key = JSON.stringify([model, metric]);
  if (bases.has(key)) return bases.get(key);
  const ratio = (data.metrics[metric] || {}).delta === "ratio";
  let found = null;
  for (const i of rowsOf(model)) {
    const v = value(metric, i),
      d = value(metric, i, "d");
    if (v === null) continue;
    if (d !== null) {
      found = ratio ? v / d : v - d;
      break;
    }
    if (reference(i) && found === null) found = v;
  }
  bases.set(key, found);
  return found;
}

const ofModel = new Map();
function rowsOf(model) {
  if (!ofModel.size)
    for (let i = 0; i < data.count; i++) {
      const name = cell("model", i);
      if (!ofModel.has(name)) ofModel.set(name, []);
      ofModel.get(name).push(i);
    }
  return ofModel.get(model) || [];
}
