// Bar charts in SVG, each with its numbers as a table.
"use strict";

{
  const { make, number, short } = report;
  const ROW = 21;
  const BAR = 15;

  const width = (host) => Math.max(240, Math.min(host.clientWidth || 600, 1180));

  // Text that fits: a label longer than this is cut, its title has the whole.
  const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

  const labels = (bars, wide) => {
    const longest = Math.max(4, ...bars.map((bar) => bar.length));
    const most = Math.min(longest, wide < 420 ? 16 : 34);
    return { most, space: Math.ceil(most * 6.7) + 10 };
  };

  const svg = (wide, high, label) => d3.create("svg")
    .attr("viewBox", `0 0 ${wide} ${high}`).attr("width", wide).attr("height", high)
    .attr("role", "img").attr("aria-label", label);

  const barLabel = (row, bar, most, x) => row.append("text").attr("x", x).attr("y", BAR / 2).attr("dy", ".35em")
    .attr("text-anchor", "end").text(cut(bar, most)).append("title").text(bar);

  // A small chart for each part, each with its own scale.
  const panels = (host, chart) => {
    const box = host.appendChild(make("div", { class: "panels" }));
    for (const [name, values] of chart.parts) {
      const figure = box.appendChild(make("figure", {}, make("figcaption", {}, name)));
      const wide = width(figure);
      const { most, space } = labels(chart.bars, wide);
      const x = d3.scaleLinear([0, d3.max(values) || 1], [0, Math.max(40, wide - space - 70)]);
      const drawn = svg(wide, values.length * ROW, `${chart.title}: ${name}`);
      values.forEach((value, n) => {
        const row = drawn.append("g").attr("transform", `translate(0,${n * ROW + (ROW - BAR) / 2})`);
        barLabel(row, chart.bars[n], most, space - 8);
        row.append("line").attr("class", "base").attr("x1", space).attr("x2", space).attr("y1", -3).attr("y2", BAR + 3);
        if (value > 0) row.append("rect").attr("class", "m-bar").attr("x", space).attr("width", Math.max(1, x(value))).attr("height", BAR);
        row.append("text").attr("class", value ? "value" : "value soft").attr("x", space + x(value) + 6)
          .attr("y", BAR / 2).attr("dy", ".35em").text(number(value));
      });
      figure.append(drawn.node());
    }
  };

  // One bar for each, made of the parts.
  const stack = (host, chart) => {
    const totals = chart.bars.map((_, n) => d3.sum(chart.parts, ([, values]) => values[n]));
    const used = chart.parts.filter(([, values]) => values.some((value) => value > 0));
    host.append(make("ul", { class: "legend" }, ...used.map(([name], n) =>
      make("li", {}, make("span", { class: `swatch m${n % 8 + 1}` }), name))));
    const wide = width(host);
    const { most, space } = labels(chart.bars, wide);
    const x = d3.scaleLinear([0, d3.max(totals) || 1], [0, Math.max(40, wide - space - 84)]);
    const drawn = svg(wide, totals.length * ROW + 22, chart.title);
    drawn.append("g").attr("transform", `translate(${space},${totals.length * ROW})`)
      .call(d3.axisBottom(x).ticks(Math.max(2, Math.floor(wide / 160)), "s").tickSizeInner(-totals.length * ROW).tickFormat(short));
    totals.forEach((total, n) => {
      const row = drawn.append("g").attr("transform", `translate(0,${n * ROW + (ROW - BAR) / 2})`);
      barLabel(row, chart.bars[n], most, space - 8);
      let from = 0;
      used.forEach(([name, values], part) => {
        if (values[n] === 0) return;
        row.append("rect").attr("class", `m${part % 8 + 1}`).attr("x", space + x(from)).attr("height", BAR)
          .attr("width", Math.max(1, x(from + values[n]) - x(from) - 1))
          .append("title").text(`${chart.bars[n]}, ${name}: ${number(values[n])}`);
        from += values[n];
      });
      row.append("text").attr("class", "value").attr("x", space + x(total) + 6).attr("y", BAR / 2).attr("dy", ".35em").text(number(total));
    });
    host.append(drawn.node());
  };

  const draw = (host, chart) => {
    host.replaceChildren();
    if (chart.parts.every(([, values]) => values.every((value) => value === 0))) {
      host.append(make("p", { class: "quiet" }, "None."));
    } else if (chart.form === "panels") panels(host, chart);
    else stack(host, chart);
  };

  // The charts of a page, redrawn when it becomes wider or narrower.
  report.chart = (chart) => {
    const host = make("div", {});
    const rows = chart.bars.map((bar, n) => [bar, chart.parts.map(([, values]) => values[n]), false]);
    const table = make("details", {}, make("summary", {}, "The numbers as a table"),
      report.table("", chart.parts.map(([name]) => name), rows));
    const panel = make("div", { class: "panel" }, make("h3", {}, chart.title), make("p", { class: "quiet" }, chart.about), host, table);
    let wide = 0;
    new ResizeObserver(() => {
      if (Math.abs(panel.clientWidth - wide) < 2) return;
      wide = panel.clientWidth;
      draw(host, chart);
    }).observe(panel);
    return panel;
  };
}
