// Reads the data of the page and puts its parts together.
"use strict";

{
  const { $, make, number } = report;
  const data = JSON.parse($("data").textContent);

  $("command").textContent = data.command;
  document.title = `tlbscope ${data.command}: ${data.inputs.map((input) => input.path).join(", ")}`;
  $("made").textContent = `Made by ${data.tool}.`;

  const card = (of) => make("article", { class: `card ${of.tone}` }, make("h3", {}, of.title), make("p", { class: "quiet" }, of.subtitle),
    make("p", { class: "verdict" }, of.verdict),
    make("dl", { class: "facts" }, ...of.facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, number(value))))));
  $("cards").append(...data.cards.map(card));

  for (const section of data.sections) {
    const several = data.sections.length > 1;
    const tables = section.tables.map((table) => make("div", { class: "panel" }, make("h3", {}, table.title),
      make("p", { class: "quiet" }, table.about), report.table("", table.head, table.rows, table.sparse)));
    $("sections").append(...(several ? [make("h3", {}, section.title)] : []), ...section.charts.map(report.chart), ...tables);
  }

  const source = (of) => make("div", { class: "panel sources" }, make("h3", {}, of.path),
    make("dl", {}, ...[["digest", of.digest], ...of.facts].filter(([, value]) => value !== "").flatMap(([name, value]) =>
      [make("dt", {}, name), make("dd", {}, value)])),
    of.notes.length > 0 ? make("ul", {}, ...of.notes.map((note) => make("li", {}, note))) : "");
  $("inputs-body").append(...data.inputs.map(source));
  const notes = data.runs.flatMap((run) => run.notes.map((note) => (data.runs.length > 1 ? `${run.name}: ${note}` : note)));
  if (notes.length > 0) $("inputs-body").append(make("div", { class: "panel sources" }, make("h3", {}, "Limits"), make("ul", {}, ...notes.map((note) => make("li", {}, note)))));

  // What is worst is shown first.
  data.start = Math.max(0, data.runs.findIndex((run) => run.findings.some((f) => f.tone === "bad")));
  let timeline = null;
  const findings = report.findings(data, (run, n) => timeline?.show(run, n));
  const models = data.runs.map((run) => (run.timeline ? report.model(data, run) : null));
  if (models.some(Boolean)) timeline = report.timeline(data, models, findings.open);
  else $("timeline-body").replaceChildren(make("p", { class: "note" }, "There is no timeline: see the limits below."));

  // Paper is white: the canvas is drawn again in the colours of the light page.
  window.addEventListener("beforeprint", () => {
    document.documentElement.setAttribute("data-print", "");
    findings.unfold();
    timeline?.paintNow();
  });
  window.addEventListener("afterprint", () => {
    document.documentElement.removeAttribute("data-print");
    timeline?.paintNow();
  });
  document.documentElement.dataset.ready = "";
}
