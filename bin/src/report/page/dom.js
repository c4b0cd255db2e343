// Elements, numbers and words. Texts go in as text, never as markup.
"use strict";

const report = {};

// An element with a class, attributes and children; a child that is no node becomes a text node.
report.make = (tag, properties = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
};

report.$ = (id) => document.getElementById(id);

// 1234567 as 1,234,567 whatever the reader's language, so that reports look the same.
report.number = d3.format(",");

// A short number for axes: 1.2M.
report.short = (n) => (n < 10000 ? report.number(n) : d3.format(".3~s")(n).replace("G", "B"));

// An instant in nanoseconds, with as many digits as `step` needs.
report.time = (ns, step = 0) => {
  const size = Math.max(Math.abs(ns), step);
  const [unit, name] = size >= 1e9 ? [1e9, "s"] : size >= 1e6 ? [1e6, "ms"] : size >= 1e3 ? [1e3, "µs"] : [1, "ns"];
  const digits = step > 0 ? Math.max(0, Math.min(9, Math.ceil(Math.log10(unit / step) - 1e-9))) : 3;
  return `${(ns / unit).toLocaleString("en", { maximumFractionDigits: digits })} ${name}`;
};

report.option = (value, text) => report.make("option", { value }, text);

// The value of a property of the style sheet: a canvas needs it as a word.
report.colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// A table of numbers: the first column names the row.
report.table = (first, head, rows, sparse = false) => {
  const { make } = report;
  const body = rows.map(([name, values, compared]) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const cells = values.map((n) => {
      const mark = compared && n === low ? "low" : compared && n === high ? "high" : "";
      const title = mark === "low" ? "lowest" : mark === "high" ? "highest" : undefined;
      return make("td", { class: `number ${mark} ${n === 0 ? "zero" : ""}`, title }, sparse && n === 0 ? "·" : report.number(n));
    });
    return make("tr", {}, make("th", { scope: "row" }, name), ...cells);
  });
  const heads = head.map((name) => make("th", { scope: "col", class: "number" }, name));
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table" },
    make("table", {}, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, first), ...heads)),
      make("tbody", {}, ...body)));
};
