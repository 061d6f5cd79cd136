// The parts of a point that come from its details and its Records: plan, generations, provenance.
function referenceRow(i) {
  return rowsOf(cell("model", i)).find(k => reference(k) && measured(k) && String(k) in data.details.plans);
}

function planOf(i) {
  const words = data.details.words,
    plan = data.details.plans[i];
  if (!plan) {
    const why = !measured(i)
      ? null
      : data.details.left
        ? "The plan by layer and what it generated stand here for the points nearest to the front, and in the line above for this one."
        : null;
    return why ? [make("p", { class: "soft", text: why })] : [];
  }
  const other = referenceRow(i),
    original = new Map();
  if (other !== undefined && other !== i) {
    const p = data.details.plans[other];
    for (let k = 0; k < p.length; k += 2) original.set(p[k], words[p[k + 1]]);
  }
  const lines = [];
  for (let k = 0; k < plan.length; k += 2) {
    const now = words[plan[k + 1]],
      was = original.get(plan[k]);
    lines.push(
      make(
        "tr",
        {},
        make("td", { class: "left", text: words[plan[k]] }),
        make("td", { class: "left", text: now }),
        ...(original.size ? [make("td", { class: "left soft", text: was ?? "" })] : []),
      ),
    );
  }
  const heads = ["layer", "this point", ...(original.size ? ["original"] : [])];
  return [
    make(
      "details",
      { class: "section" },
      make(
        "summary",
        {},
        make("b", { text: "Plan by layer" }),
        " " + (cell("plan", i) || plural(lines.length, "layer")),
      ),
      make(
        "table",
        {},
        make(
          "thead",
          {},
          make("tr", {}, ...heads.map(text => make("th", { text, class: "left", scope: "col" }))),
        ),
        make("tbody", {}, ...lines),
      ),
    ),
  ];
}

// The part of two texts between their common start and end.
function differing(text, other) {
  let a = 0,
    b = 0;
  while (a < text.length && a < other.length && text[a] === other[a]) a++;
  while (
    b < text.length - a &&
    b < other.length - a &&
    text[text.length - 1 - b] === other[other.length - 1 - b]
  )
    b++;
  return [text.slice(0, a), text.slice(a, text.length - b), text.slice(text.length - b)];
}
function marked(text, other) {
  const [before, middle, after] = differing(text, other);
  return middle ? [before, make("mark", { text: middle }), after] : [text];
}

function saidOf(i) {
  const found = data.details.texts[i];
  if (!found) return [];
  const words = data.details.words;
  return [
    heading("generations beside the original's"),
    ...found.map(task =>
      make(
        "details",
        { class: "section" },
        make(
          "summary",
          {},
          make("b", { text: titleOf(task.task) }),
          ` ${task.same} of ${task.all} the same as the original's` +
            (task.rows.length < task.all ? `; the first ${task.rows.length}` : ""),
        ),
        ...task.rows.map(([prompt, now, was, wanted]) =>
          make(
            "div",
            { class: "said-by" },
            make("div", { class: "prompt", text: words[prompt] }),
            make("div", {}, make("small", { text: "this point" }), ...marked(words[now], words[was])),
            make("div", {}, make("small", { text: "original" }), ...marked(words[was], words[now])),
            words[wanted] && words[wanted] !== words[was]
              ? make("div", { class: "prompt", text: "wanted: " + words[wanted] })
              : null,
          ),
        ),
      ),
    ),
  ];
}

function configOf(i) {
  const pairs = data.config
    .map(name => [titleOf(name), cell(name, i)])
    .filter(([k, v]) => v !== null && v !== "" && k !== "reason" && k !== "label");
  return [
    heading("configuration"),
    list(pairs.map(([k, v]) => [k, v === true ? "yes" : v === false ? "no" : String(v)])),
  ];
}

function plainly(value) {
  return value !== null && typeof value === "object"
    ? Object.entries(value)
        .map(([k, v]) => k + " " + plainly(v))
        .join(", ")
    : String(value);
}

function madeOf(i) {
  const r = data.records,
    shared = k => (k < 0 ? {} : r.shared[k]);
  return recordsOf(i).flatMap(k => {
    const made = shared(r.made[k]),
      pairs = [
        ["run_id", r.id[k] + "…"],
        ["UTC", at(r.utc, k)],
        [
          "commit",
          made.commit
            ? made.commit.slice(0, 12) + (made.dirty ? ", with changes that were not committed" : "")
            : null,
        ],
        ["device", made.device],
        ["threads", made.threads],
        ["platform", made.platform],
        ["seed", made.seed],
        [
          "took",
          r.seconds[k] === null
            ? null
            : number(r.seconds[k], 3) +
              " s" +
              (r.peak[k] === null ? "" : ", " + number(r.peak[k], 4) + " MiB of memory at most"),
        ],
        ["versions", made.versions ? plainly(made.versions) : null],
        ...Object.entries(shared(r.model[k])).map(([n, v]) => ["model " + n, v === null ? null : plainly(v)]),
        ...Object.entries(shared(r.calibration[k])).map(([n, v]) => [
          "calibration " + n,
          v === null ? null : plainly(v),
        ]),
        ...Object.entries(shared(r.plan[k])).map(([n, v]) => ["plan " + n, plainly(v)]),
        ["reason", at(r.reason, k)],
      ];
    return [
      heading("provenance of the " + at(r.kind, k) + " Record" + (made.dirty ? " (dirty)" : "")),
      list(
        pairs.filter(([, v]) => v !== null && v !== undefined && v !== "").map(([n, v]) => [n, String(v)]),
      ),
    ];
  });
}
