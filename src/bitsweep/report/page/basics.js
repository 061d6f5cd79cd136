"use strict";
// Elements are made and filled here alone: text is text, whatever it holds.
const $ = id => document.getElementById(id);

function make(tag, has = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(has)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "text") element.textContent = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}

const escape = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
// plotly reads some markup in its texts; nothing of a Record may become a link or a line of it
const cut = (text, most) => {
  text = String(text);
  return text.length > most ? text.slice(0, most - 1) + "…" : text;
};
const distinct = values => [...new Set(values)];
// Numbers within texts by their size, decimals too: "budget 3.25" before "budget 3.5".
const WORDS = new Intl.Collator("en");
function natural(a, b) {
  if (a === b) return 0;
  const [p, q] = [a, b].map(text => String(text).split(/(\d+(?:\.\d+)?)/));
  for (let k = 0; k < p.length && k < q.length; k++) {
    const by = k % 2 ? p[k] - q[k] : WORDS.compare(p[k], q[k]);
    if (by) return by;
  }
  return p.length - q.length;
}
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const plural = (n, one, many = one + "s") => n.toLocaleString("en") + " " + (n === 1 ? one : many);

function number(value, digits = 5) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return String(value).replace("-", "−");
  const size = Math.abs(value);
  const text =
    size >= 1e6 || (size < 1e-4 && size > 0)
      ? value.toExponential(2)
      : size >= 10 ** digits
        ? value.toFixed(0)
        : value.toPrecision(digits);
  return text.replace("-", "−");
}

// Decimals of a change of which three digits are worth reading; its interval has as many.
const places = value => [0.1, 10, 100].filter(limit => Math.abs(value) >= limit).reduce(n => n - 1, 3);

function signed(value, digits = places(value)) {
  const size = Math.abs(value);
  if (size >= 1e6) return (value < 0 ? "−" : "+") + size.toExponential(1);
  return (Number(value.toFixed(digits)) < 0 ? "−" : "+") + size.toFixed(digits);
}

async function copy(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // without permission, or where the page has no secure origin
    const area = make("textarea", { style: "position:fixed;opacity:0" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "copied";
  setTimeout(() => {
    button.textContent = before;
  }, 1200);
}

function fill(select, values, titles, now) {
  select.replaceChildren(
    ...values.map((value, i) => {
      const option = make("option", { text: titles[i] });
      option.value = value;
      return option;
    }),
  );
  if (values.includes(now)) select.value = now;
}
