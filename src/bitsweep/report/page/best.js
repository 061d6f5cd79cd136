// Which method to take at a width: for each number of bits the best point shown, and its rivals.
function best() {
  const y = view.y,
    better = data.metrics[y] ? data.metrics[y].better : "none";
  const points = view.rows.filter(
    i => !reference(i) && measured(i) && value(y, i) !== null && partOf(i) === null,
  );
  const widths = new Map();
  for (const i of points) {
    const b = cell("bits", i),
      key = b ?? (cell("policy", i) || "by layer");
    widths.set(key, [...(widths.get(key) || []), i]);
  }
  $("best-section").hidden = better === "none" || points.length < 2 || !widths.size;
  if ($("best-section").hidden) return;
  const sign = better === "higher" ? -1 : 1;
  const mixed = key => typeof key === "string",
    order = [...widths.keys()].sort((a, b) => mixed(a) - mixed(b) || (mixed(a) ? natural(b, a) : b - a));
  const several = distinct(points.map(i => cell("policy", i))).length > 1,
    weightsOf = i =>
      [cell("weights", i), several && cell("bits", i) !== null && cell("policy", i)].filter(Boolean).join(" ");
  const size = ["file_mib"].filter(m => m in data.metrics),
    delta = data.metrics[y].delta;
  const heads = [
    "bits",
    "best by " + titleOf(y),
    several ? "weights, policy" : "weights",
    ...(delta ? ["change [95 %]"] : []),
    "value",
    ...size.map(titleOf),
    "within its noise",
    "smallest of these",
  ];
  const left = new Set([0, 1, 2, heads.length - 1]);
  const lines = order.map(key => {
    const own = widths.get(key).sort((a, b) => sign * (value(y, a) - value(y, b)) || a - b),
      first = own[0];
    const hi = bound(y, first, sign),
      rivals = own
        .slice(1)
        .filter(i => bound(y, i, -sign) !== null && hi !== null && sign * bound(y, i, -sign) <= sign * hi);
    const least = [first, ...rivals].reduce((a, b) =>
      (value("file_mib", b) ?? Infinity) < (value("file_mib", a) ?? Infinity) ? b : a,
    );
    const to = i =>
      make("button", {
        type: "button",
        class: "link",
        text: cut(cell("full", i), 60),
        title: cell("label", i),
        onclick: () => openRow(i),
      });
    const cells = [
      String(key),
      to(first),
      weightsOf(first),
      ...(delta ? [changeText(y, first)] : []),
      number(value(y, first)),
      ...size.map(m => number(value(m, first), 4)),
      rivals.length ? plural(rivals.length, "other") : hi === null ? "no interval" : "none",
      least === first
        ? ""
        : make("button", {
            type: "button",
            class: "link",
            title: cell("label", least),
            onclick: () => openRow(least),
            text:
              cut(cell("full", least), 30) +
              " " +
              weightsOf(least) +
              ", " +
              number(value("file_mib", least), 4) +
              " MiB",
          }),
    ];
    return make(
      "tr",
      {},
      ...cells.map((c, k) => {
        const td = make("td", { class: left.has(k) ? "left" : null });
        td.append(c);
        return td;
      }),
    );
  });
  $("best").replaceChildren(
    make(
      "thead",
      {},
      make(
        "tr",
        {},
        ...heads.map((h, k) => make("th", { text: h, class: left.has(k) ? "left" : null, scope: "col" })),
      ),
    ),
    make("tbody", {}, ...lines),
  );
  $("best-said").textContent =
    "Among the points shown, whatever their group and policy. Within its noise: points whose paired interval overlaps the best one's.";
}

// The far (side 1) or near end of a paired interval, in the direction of worse.
function bound(y, i, side) {
  const ends = [value(y, i, "dlo"), value(y, i, "dhi")];
  return ends[0] === null ? null : side > 0 ? ends[1] : ends[0];
}
