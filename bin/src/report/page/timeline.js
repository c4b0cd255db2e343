// What can be done with a timeline: move, zoom, filter, choose effects and findings.
"use strict";

report.timeline = (data, models, open) => {
  const { $, make, number, time } = report;
  const LANES = 16;
  const ROWS = 300;
  const box = $("tl-view");
  const [canvas, overview] = [box.querySelector("canvas"), $("tl-overview").querySelector("canvas")];
  const shown = models.map((model, n) => (model ? n : -1)).filter((n) => n >= 0);
  const on = report.groups.map(() => true);
  let matches = null;
  const view = {
    axis: "event", runs: [shown.includes(data.start) ? data.start : shown[0]], models: [], names: [], lanes: [], selected: null,
    wide: 800, gutter: 92, base: d3.scaleLinear(), x: d3.scaleLinear(), layout: { rows: [], high: 60 },
    shows: (model, n) => on[model.group(n)] && (matches === null || matches.get(model)[model.run.timeline.what[n]]),
  };
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const zoom = d3.zoom()
    .filter((event) => (event.type === "wheel" ? event.ctrlKey || event.metaKey : !event.button))
    .duration(still ? 0 : 160)
    .on("zoom", () => paint());
  const target = d3.select(box).call(zoom).on("keydown.zoom", null);

  const short = (run) => data.runs[run].name;

  // Lays out anew: other runs, lanes, axis or width. The part in view stays where it can.
  const arrange = (domain) => {
    view.models = view.runs.map((run) => models[run]);
    view.names = view.runs.map((run) => data.cards[run].title);
    const wanted = report.numbers($("tl-vcpus").value);
    const all = [...new Set(view.models.flatMap((model) => model.lanes))].sort((a, b) => a - b);
    const named = all.filter((lane) => lane < 0 || wanted === null || wanted(lane));
    view.lanes = named.slice(0, LANES + (named[0] < 0 ? 1 : 0));
    view.hidden = named.length - view.lanes.length;
    view.wide = box.clientWidth;
    view.gutter = view.wide < 500 ? 78 : 92;
    view.layout = report.layout(view, data.rows);
    const end = Math.max(...view.models.map((model) => model.end[view.axis]));
    const right = view.wide - 6;
    view.base = d3.scaleLinear([0, end], [view.gutter, right]);
    const extent = [[view.gutter, 0], [right, view.layout.high]];
    zoom.extent(extent).translateExtent(extent).scaleExtent([1, Math.max(1, end / 4)]);
    note();
    if (domain) frame(...domain);
    else target.call(zoom.transform, d3.zoomIdentity);
  };

  const transform = () => d3.zoomTransform(box);

  // Brings [from, to] into view.
  const frame = (from, to) => {
    const { base, gutter } = view;
    const [left, right] = base.range();
    const scale = Math.max(1, Math.min((right - left) / Math.max(1e-9, base(to) - base(from)), base.domain()[1] / 4));
    const middle = base((from + to) / 2);
    const shift = (left + right) / 2 - scale * middle;
    const least = right - scale * right;
    const most = gutter - scale * gutter;
    target.call(zoom.transform, d3.zoomIdentity.translate(Math.max(least, Math.min(most, shift)), 0).scale(scale));
  };

  let due = false;
  const paint = () => {
    view.x = transform().rescaleX(view.base);
    if (due) return;
    due = true;
    requestAnimationFrame(paintNow);
  };
  const paintNow = () => {
    due = false;
    report.paintLanes(canvas, view, data.kinds);
    report.paintOverview(overview, view);
    tell();
  };

  // How many effects are in view, and which part of the run that is.
  const inView = (most) => {
    const out = [];
    let total = 0;
    const [low, high] = view.x.domain();
    view.models.forEach((model, of) => {
      const places = model.at[view.axis];
      for (let n = d3.bisectLeft(places, low); n < model.size && places[n] <= high; n += 1) {
        if (!view.shows(model, n) || !view.lanes.includes(model.lane[n])) continue;
        total += 1;
        if (out.length < most) out.push({ of, effect: n });
      }
    });
    return { out, total };
  };
  const tell = () => {
    const [low, high] = view.x.domain();
    const part = view.axis === "time" ? `${time(low)} to ${time(high)}`
      : `events ${number(Math.max(0, Math.floor(low)))} to ${number(Math.max(0, Math.ceil(high) - 1))}`;
    const table = $("tl-table");
    const { out, total } = inView(table.open ? ROWS : 0);
    const hidden = view.hidden > 0 ? `; ${view.hidden} more vCPUs: name those to see` : "";
    $("tl-shown").textContent = `In view: ${part}, ${number(total)} effects${hidden}.`;
    if (table.open) fill(table.querySelector("div"), out, total);
  };
  const fill = (host, effects, total) => {
    const head = ["event", "time", "on", "what it is", "effect"];
    const rows = effects.map(({ of, effect }) => make("tr", {}, ...facts(of, effect).map((fact) => make("td", {}, fact))));
    const more = total > effects.length ? make("p", { class: "quiet" }, `The first ${effects.length} of ${number(total)}; zoom in for others.`) : "";
    host.replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, ...rows)), more);
  };
  const lane = (n) => (n < 0 ? "host" : `v${n}`);
  const facts = (of, n) => {
    const model = view.models[of];
    const run = view.models.length > 1 ? `${lane(model.lane[n])}, ${view.names[of]}` : lane(model.lane[n]);
    return [number(model.event[n]), time(model.at.time[n]), run, data.kinds[model.kind[n]][0], model.what(n)];
  };

  // What is left out of what is shown.
  const note = () => {
    const parts = view.runs.map((run) => {
      const t = data.runs[run].timeline;
      const of = view.runs.length > 1 ? ` under ${data.cards[run].title}` : "";
      const end = t.cut ? " The run is longer than what was watched." : "";
      if (t.event.length === t.total) return end.trim();
      return `Only a part is shown${of}: ${number(t.event.length)} of ${number(t.total)} effects, all before event ${number(t.wholeUntil)}, from there on those around findings.${end}`;
    });
    const text = parts.filter(Boolean).join(" ");
    $("tl-part").textContent = text;
    $("tl-part").hidden = text === "";
  };

  const choose = (selected) => {
    view.selected = selected;
    const detail = $("tl-detail");
    detail.replaceChildren();
    if (!selected) return paint();
    const model = view.models[selected.of];
    const finding = selected.finding ?? model.finding[selected.effect];
    if (selected.effect !== undefined) {
      const [event, when, on, kind, what] = facts(selected.of, selected.effect);
      detail.append(make("p", {}, make("b", {}, what), ` — ${kind} on ${on}, event ${event}, ${when}`));
    }
    if (finding >= 0) {
      const f = model.run.findings[finding];
      detail.append(make("p", {}, `Finding ${finding + 1}: ${f.kind}, ${f.rule}, ${f.op} on v${f.vcpu}. `,
        make("button", { type: "button", onclick: () => open(view.runs[selected.of], finding) }, "Open it")));
    }
    paint();
  };

  // The effect that is closest to a point, if one is close.
  const near = (px, py) => {
    const row = view.layout.rows.find((r) => r.list && py >= r.y && py < r.y + r.high);
    if (!row || px < view.gutter) return null;
    const places = row.model.at[view.axis];
    const middle = report.from(row.list, places, view.x.invert(px));
    let [best, far] = [null, 9];
    const look = (n) => {
      const effect = row.list[n];
      const away = Math.abs(view.x(places[effect]) - px);
      if (view.shows(row.model, effect) && away < far) [best, far] = [effect, away];
      return away < 9;
    };
    for (let n = middle; n < row.list.length && n < middle + 500 && look(n); n += 1);
    for (let n = middle - 1; n >= 0 && n > middle - 500 && look(n); n -= 1);
    if (best !== null) return { of: row.of, effect: best };
    if (!row.verdicts) return null;
    const place = view.x.invert(px);
    const finding = row.model.run.findings.findIndex((f) => {
      const [from, to] = row.model.span(f, view.axis);
      return f.vcpu === row.lane && from <= place && to >= place && f.span[2] > f.span[0];
    });
    return finding < 0 ? null : { of: row.of, finding };
  };

  const tip = $("tl-tip");
  const hover = (event) => {
    const [px, py] = d3.pointer(event, canvas);
    const found = near(px, py);
    tip.hidden = !found;
    box.style.cursor = found ? "pointer" : "";
    if (!found) return;
    const model = view.models[found.of];
    const f = model.run.findings[found.finding ?? 0];
    tip.textContent = found.effect === undefined ? `finding ${found.finding + 1}: ${f.kind}, ${f.rule}`
      : ((of) => `${of[4]}\n${of[3]}, event ${of[0]}, ${of[1]}`)(facts(found.of, found.effect));
    tip.style.left = `${Math.max(4, Math.min(px + 12, view.wide - tip.offsetWidth - 8))}px`;
    tip.style.top = `${py + 16}px`;
  };
  box.addEventListener("pointermove", hover);
  box.addEventListener("pointerleave", () => { tip.hidden = true; });
  box.addEventListener("click", (event) => {
    const found = near(...d3.pointer(event, canvas));
    if (found) choose(found);
  });
  box.addEventListener("wheel", (event) => {
    if (event.ctrlKey || event.metaKey || Math.abs(event.deltaX) <= Math.abs(event.deltaY)) return;
    event.preventDefault();
    move(-event.deltaX);
  }, { passive: false });

  const move = (pixels) => target.call(zoom.translateBy, pixels / transform().k, 0);
  const scale = (by) => {
    const [low, high] = view.x.domain();
    const { selected } = view;
    const at = selected?.effect === undefined ? null : view.models[selected.of].at[view.axis][selected.effect];
    const around = at !== null && at >= low && at <= high ? [view.x(at), 0] : undefined;
    target.call(zoom.scaleBy, by, around);
  };
  const whole = () => target.call(zoom.transform, d3.zoomIdentity);

  // Keeps a place in view.
  const reveal = (place) => {
    const [low, high] = view.x.domain();
    if (place < low || place > high) frame(place - (high - low) / 2, place + (high - low) / 2);
  };
  const step = (by) => {
    const of = view.selected?.of ?? 0;
    const model = view.models[of];
    const places = model.at[view.axis];
    const start = view.selected?.effect ?? d3.bisectLeft(places, view.x.domain()[0]) - (by > 0 ? 1 : 0);
    for (let n = start + by; n >= 0 && n < model.size; n += by) {
      if (!view.shows(model, n) || !view.lanes.includes(model.lane[n])) continue;
      choose({ of, effect: n });
      return reveal(places[n]);
    }
  };
  const go = (of, finding) => {
    const model = view.models[of];
    const f = model.run.findings[finding];
    const [from, to] = model.span(f, view.axis);
    const pad = view.axis === "event" ? Math.max(4, (to - from) * 0.25) : Math.max(2000, (to - from) * 0.25);
    const effect = model.finding.indexOf(finding);
    choose(effect < 0 ? { of, finding } : { of, effect, finding });
    frame(from - pad, to + pad);
  };
  const stepFinding = (by) => {
    const of = view.selected?.of ?? 0;
    const { findings } = view.models[of].run;
    if (findings.length === 0) return;
    const now = view.selected?.finding ?? (view.selected ? view.models[of].finding[view.selected.effect] : -1);
    go(of, (now + by + findings.length + (now < 0 && by < 0 ? 1 : 0)) % findings.length);
  };

  const keys = {
    ArrowLeft: () => move(view.wide / 8), ArrowRight: () => move(-view.wide / 8),
    "+": () => scale(1.6), "=": () => scale(1.6), "-": () => scale(1 / 1.6), 0: whole,
    Home: () => frame(0, view.x.domain()[1] - view.x.domain()[0]),
    End: () => frame(view.base.domain()[1] - (view.x.domain()[1] - view.x.domain()[0]), view.base.domain()[1]),
    n: () => step(1), p: () => step(-1), f: () => stepFinding(1), F: () => stepFinding(-1),
    Escape: () => choose(null),
    Enter: () => {
      const { selected } = view;
      const finding = selected && (selected.finding ?? view.models[selected.of].finding[selected.effect]);
      if (selected && finding >= 0) open(view.runs[selected.of], finding);
    },
  };
  box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  $("tl-in").addEventListener("click", () => scale(2));
  $("tl-out").addEventListener("click", () => scale(0.5));
  $("tl-fit").addEventListener("click", whole);
  $("tl-next").addEventListener("click", () => stepFinding(1));
  $("tl-table").addEventListener("toggle", paint);

  // The overview: press and drag to look elsewhere.
  const look = (event) => {
    if (event.buttons !== 1) return;
    const place = view.base.invert(d3.pointer(event, overview)[0]);
    const [low, high] = view.x.domain();
    frame(place - (high - low) / 2, place + (high - low) / 2);
  };
  $("tl-overview").addEventListener("pointerdown", look);
  $("tl-overview").addEventListener("pointermove", look);

  const again = () => { choose(null); arrange(view.axis === axisBefore ? view.x.domain() : null); axisBefore = view.axis; };
  let axisBefore = view.axis;
  const filter = () => {
    const words = $("tl-words").value.trim().toLowerCase();
    matches = words === "" ? null : new Map(view.models.map((model) =>
      [model, model.run.timeline.texts.map((text) => text.toLowerCase().includes(words))]));
    paint();
  };
  $("tl-words").addEventListener("input", filter);
  $("tl-vcpus").addEventListener("input", again);
  $("tl-axis").addEventListener("change", () => { view.axis = $("tl-axis").value; again(); });
  const [first, beside] = [$("tl-run"), $("tl-beside")];
  const pick = () => {
    const [a, b] = [Number(first.value), Number(beside.value)];
    view.runs = b >= 0 && b !== a ? [a, b] : [a];
    arrange(view.x.domain());
    choose(null);
    chips();
    filter();
  };
  first.append(...shown.map((run) => report.option(run, short(run))));
  beside.append(report.option(-1, "nothing"), ...shown.map((run) => report.option(run, short(run))));
  first.value = view.runs[0];
  first.addEventListener("change", pick);
  beside.addEventListener("change", pick);
  first.parentElement.hidden = $("tl-beside-field").hidden = shown.length < 2;

  const chips = () => {
    const counts = report.groups.map((_, n) => d3.sum(view.models, (model) => model.counts[n]));
    const chip = (group, n) => {
      const input = make("input", { type: "checkbox", checked: on[n], onchange: () => { on[n] = input.checked; paint(); } });
      return make("label", { class: `k-${group.colour}` }, input, make("span", { class: "swatch" }), `${group.name} ${number(counts[n])}`);
    };
    const used = report.groups.map((group, n) => (counts[n] > 0 ? chip(group, n) : null)).filter(Boolean);
    $("tl-kinds").replaceChildren($("tl-kinds").querySelector("legend"), ...used);
  };

  arrange(null);
  chips();
  new ResizeObserver(() => { if (box.clientWidth !== view.wide) arrange(view.x.domain()); }).observe(box);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  return {
    paintNow,
    // Shows a finding of a run, which is put in front if it is not there.
    show: (run, finding) => {
      if (!view.runs.includes(run)) { first.value = run; pick(); }
      go(view.runs.indexOf(run), finding);
      $("timeline").scrollIntoView();
      box.focus({ preventScroll: true });
    },
  };
};
