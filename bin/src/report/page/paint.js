// Draws a timeline: an overview of the whole run with the axis of the part in view, and below it a
// lane for each vCPU with a row for each kind of thing.
"use strict";

{
  const { colour, number, time } = report;
  const FONT = "11px system-ui, sans-serif";
  const ROW = 18;
  const GAP = 9;
  const HEAD = 17;
  const MAP = 30;

  // The first place in `list` whose effect is at `place` or later.
  report.from = (list, places, place) => {
    let [low, high] = [0, list.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (places[list[middle]] < place) low = middle + 1;
      else high = middle;
    }
    return low;
  };

  const prepare = (canvas, wide, high) => {
    const dense = Math.min(3, window.devicePixelRatio || 1);
    if (canvas.width !== Math.round(wide * dense) || canvas.height !== Math.round(high * dense)) {
      canvas.width = Math.round(wide * dense);
      canvas.height = Math.round(high * dense);
      canvas.style.height = `${high}px`;
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    pen.clearRect(0, 0, wide, high);
    pen.font = FONT;
    pen.textBaseline = "middle";
    return pen;
  };

  const colours = () => {
    const names = ["ink", "soft", "line", "band", "card", "bad", "warn", "info", "good"];
    const out = Object.fromEntries(names.map((name) => [name, colour(name)]));
    out.groups = report.groups.map((group) => colour(`c-${group.colour}`));
    return out;
  };

  // The rows that are shown, from the top, with their place: those of each vCPU, and there those of
  // each run.
  report.layout = (view, rowNames) => {
    const rows = [];
    let y = 4;
    for (const lane of view.lanes) {
      const name = lane < 0 ? "host" : `v${lane}`;
      view.models.forEach((model, of) => {
        const used = rowNames.map((_, row) => row).filter((row) => model.row(lane, row).length > 0
          || row === rowNames.length - 1 && model.run.findings.some((f) => f.vcpu === lane));
        if (used.length === 0) return;
        if (view.models.length > 1) {
          rows.push({ head: `${name}, ${view.names[of]}`, y, high: HEAD });
          y += HEAD;
        }
        used.forEach((row, n) => {
          rows.push({ model, of, lane, row, list: model.row(lane, row), y, high: ROW, name: rowNames[row],
            lead: n === 0 && view.models.length === 1 ? name : "", verdicts: row === rowNames.length - 1 });
          y += ROW;
        });
        y += GAP;
      });
    }
    return { rows, high: Math.max(y, 60) };
  };

  const tick = (view, place, step) => (view.axis === "time" ? time(place, step) : number(place));

  report.paintOverview = (canvas, view) => {
    const { wide, gutter, x, base, axis } = view;
    const pen = prepare(canvas, wide, MAP + 24);
    const c = colours();
    const model = view.models[0];
    const { width, bins } = model.density[axis];
    const most = Math.sqrt(Math.max(1, ...bins));
    pen.fillStyle = c.soft;
    pen.globalAlpha = 0.55;
    bins.forEach((number, n) => {
      if (number === 0) return;
      const [from, to] = [base(n * width), base((n + 1) * width)];
      const high = Math.max(1, Math.sqrt(number) / most * (MAP - 6));
      pen.fillRect(from, MAP - high, Math.max(1, Math.min(to, wide) - from), high);
    });
    pen.globalAlpha = 1;
    for (const finding of model.run.findings) {
      if (finding.tone !== "bad") continue;
      pen.fillStyle = c.bad;
      pen.fillRect(base(model.span(finding, axis)[0]), 0, 1.5, 4);
    }
    const [from, to] = x.domain().map(base);
    pen.strokeStyle = c.ink;
    pen.strokeRect(from, 0.5, Math.max(3, to - from), MAP - 1);
    pen.fillStyle = c.band;
    pen.globalAlpha = 0.6;
    pen.fillRect(gutter, 0, from - gutter, MAP);
    pen.fillRect(to, 0, wide - to, MAP);
    pen.globalAlpha = 1;
    const ticks = x.ticks(Math.max(3, Math.floor((wide - gutter) / 110)))
      .filter((place) => axis === "time" || Number.isInteger(place));
    const step = ticks.length > 1 ? ticks[1] - ticks[0] : 0;
    pen.textAlign = "center";
    for (const place of ticks) {
      const at = x(place);
      pen.fillStyle = c.line;
      pen.fillRect(at, MAP, 1, 6);
      pen.fillStyle = c.soft;
      const text = tick(view, place, step);
      const half = pen.measureText(text).width / 2;
      if (at - half > gutter - 20 && at + half < wide) pen.fillText(text, at, MAP + 14);
    }
    pen.textAlign = "left";
    pen.fillText(axis === "time" ? "time" : "event", 8, MAP + 14);
  };

  // The windows of the findings of a lane, joined where they overlap on the screen.
  const windows = (pen, view, row, c) => {
    const { x, axis, gutter, wide } = view;
    for (const tone of ["info", "warn", "bad"]) {
      const of = row.model.run.findings.filter((f) => f.tone === tone && f.vcpu === row.lane && f.span[2] > f.span[0]);
      const spans = of.map((f) => row.model.span(f, axis).map(x)).filter(([from, to]) => to >= gutter && from <= wide);
      spans.sort((a, b) => a[0] - b[0]);
      pen.fillStyle = c[tone];
      pen.globalAlpha = 0.3;
      let until = -Infinity;
      for (const [from, to] of spans) {
        const [left, right] = [Math.max(from, until, gutter), Math.min(Math.max(to, from + 1.5), wide)];
        if (right > left) pen.fillRect(left, row.y + 2, right - left, row.high - 4);
        until = Math.max(until, right);
      }
      pen.globalAlpha = 1;
    }
  };

  const HOLLOW = new Set(["request raised", "hardware invalidation", "shadow page", "guest invalidation", "excess"]);

  // The marks of a row; where there is room, with their words.
  const marks = (pen, view, row, c, kinds) => {
    const { x, axis, gutter, wide } = view;
    const { model, list } = row;
    const places = model.at[axis];
    const [low, high] = x.domain();
    let last = -Infinity;
    let words = null;
    const flush = (until) => {
      if (words === null) return;
      const room = until - words.at - 8;
      if (room > 30) {
        const fits = Math.floor(room / 6);
        const text = words.text.length > fits ? `${words.text.slice(0, fits - 1)}…` : words.text;
        pen.fillStyle = c.ink;
        pen.fillText(text, words.at + 5, row.y + row.high / 2 + 0.5);
      }
      words = null;
    };
    for (let n = report.from(list, places, low); n < list.length && places[list[n]] <= high; n += 1) {
      const effect = list[n];
      if (!view.shows(model, effect)) continue;
      const at = x(places[effect]);
      if (at - last < 0.7 || at < gutter) continue;
      flush(at);
      const finding = model.finding[effect];
      pen.fillStyle = pen.strokeStyle = finding < 0 ? c.groups[model.group(effect)] : c[model.run.findings[finding].tone];
      if (HOLLOW.has(kinds[model.kind[effect]][0]) && at - last > 5) pen.strokeRect(at - 1, row.y + 4.5, 3, row.high - 9);
      else pen.fillRect(at - 1, row.y + 3, at - last > 3 ? 2.5 : 1.5, row.high - 6);
      words = at - last > 3 || last === -Infinity ? { at, text: model.what(effect) } : null;
      last = at;
    }
    flush(wide);
  };

  const selection = (pen, view, high, c) => {
    const { selected, x, axis, gutter, wide } = view;
    if (!selected) return;
    const model = view.models[selected.of];
    const finding = selected.finding ?? model.finding[selected.effect];
    const lines = [];
    if (selected.effect !== undefined) lines.push([x(model.at[axis][selected.effect]), c.ink, []]);
    if (finding >= 0) {
      const of = model.run.findings[finding];
      const [from, to] = model.span(of, axis).map(x);
      lines.push([from, c[of.tone], [4, 3]], [to, c[of.tone], [4, 3]]);
    }
    for (const [at, ink, dash] of lines) {
      if (at < gutter || at > wide) continue;
      pen.strokeStyle = ink;
      pen.setLineDash(dash);
      pen.beginPath();
      pen.moveTo(at + 0.25, 0);
      pen.lineTo(at + 0.25, high);
      pen.stroke();
    }
    pen.setLineDash([]);
  };

  report.paintLanes = (canvas, view, kinds) => {
    const { wide, gutter, x, axis } = view;
    const { rows, high } = view.layout;
    const pen = prepare(canvas, wide, high);
    const c = colours();
    const whole = view.models[0].run.timeline.wholeUntil;
    if (axis === "event" && whole !== null && x(whole) < wide) {
      pen.fillStyle = c.band;
      pen.fillRect(Math.max(gutter, x(whole)), 0, wide, high);
    }
    for (const row of rows) {
      if (row.head) {
        pen.fillStyle = c.ink;
        pen.font = `600 ${FONT}`;
        pen.fillText(row.head, 8, row.y + row.high / 2);
        pen.font = FONT;
        continue;
      }
      pen.fillStyle = c.line;
      pen.fillRect(gutter, row.y + row.high - 1, wide - gutter, 0.5);
      if (row.verdicts) windows(pen, view, row, c);
      marks(pen, view, row, c, kinds);
      pen.fillStyle = c.ink;
      pen.font = `600 ${FONT}`;
      pen.fillText(row.lead, 8, row.y + row.high / 2);
      pen.font = FONT;
      pen.fillStyle = c.soft;
      pen.textAlign = "right";
      pen.fillText(row.name, gutter - 8, row.y + row.high / 2);
      pen.textAlign = "left";
    }
    selection(pen, view, high, c);
  };
}
