// A run's timeline as the drawing needs it: typed arrays, and for each row of each lane its effects.
"use strict";

{
  // What can be switched on and off, with the colour of its marks.
  report.groups = [
    { name: "register writes", kinds: ["register write"], colour: "write" },
    { name: "guest invalidations", kinds: ["guest invalidation"], colour: "write" },
    { name: "host", kinds: ["host operation", "other operation", "lost events"], colour: "host" },
    { name: "requests", kinds: ["request raised", "request served"], colour: "request" },
    { name: "flushes", kinds: ["flush hook", "hardware invalidation"], colour: "flush" },
    { name: "roots", kinds: ["root"], colour: "root" },
    { name: "shadow pages", kinds: ["shadow page"], colour: "root" },
    { name: "stale", kinds: ["stale"], colour: "stale" },
    { name: "excess", kinds: ["excess"], colour: "excess" },
  ];

  const sums = (steps) => {
    const out = new Float64Array(steps.length);
    let sum = 0;
    steps.forEach((step, n) => { out[n] = sum += step; });
    return out;
  };

  // Where each effect is along the events: those of one event side by side, in their order.
  const alongEvents = (event) => {
    const out = new Float64Array(event.length);
    for (let from = 0; from < event.length;) {
      let to = from + 1;
      while (to < event.length && event[to] === event[from]) to += 1;
      for (let n = from; n < to; n += 1) out[n] = event[from] + (n - from + 0.5) / (to - from + 0.5);
      from = to;
    }
    return rising(out);
  };

  // The order of the effects is that in which they happened; places must not run against it.
  const rising = (places) => {
    for (let n = 1; n < places.length; n += 1) if (places[n] < places[n - 1]) places[n] = places[n - 1];
    return places;
  };

  report.model = (data, run) => {
    const t = run.timeline;
    const groupOf = data.kinds.map(([name]) => report.groups.findIndex((group) => group.kinds.includes(name)));
    const event = sums(t.event);
    const time = rising(sums(t.time));
    const finding = new Int32Array(event.length).fill(-1);
    for (const [effect, of] of t.about) finding[effect] = of;
    const rows = new Map();
    const counts = report.groups.map(() => 0);
    t.kind.forEach((kind, n) => {
      counts[groupOf[kind]] += 1;
      const key = `${t.lane[n]}/${data.kinds[kind][1]}`;
      if (!rows.has(key)) rows.set(key, []);
      rows.get(key).push(n);
    });
    const lanes = [...new Set([...t.lane, ...run.findings.map((f) => f.vcpu)])].sort((a, b) => a - b);
    return {
      run, counts, lanes, finding, event,
      size: event.length,
      at: { event: alongEvents(event), time },
      kind: t.kind,
      lane: t.lane,
      what: (n) => t.texts[t.what[n]],
      group: (n) => groupOf[t.kind[n]],
      row: (lane, row) => rows.get(`${lane}/${row}`) || [],
      // From and to of a finding's window along an axis.
      span: (f, axis) => (axis === "event" ? [f.span[0], f.span[2] + 1] : [f.span[1], f.span[3]]),
      end: { event: Math.max(1, t.lastEvent + 1), time: Math.max(1, t.lastTime) },
      density: { event: t.byEvent, time: t.byTime },
    };
  };

  // The numbers that a list such as `0-3,7` names; `null`: all.
  report.numbers = (text) => {
    const parts = text.split(",").map((part) => part.trim()).filter((part) => part !== "");
    const ranges = parts.map((part) => part.replace(/^v/i, "").match(/^(\d+)(?:\s*-\s*v?(\d+))?$/i)).filter(Boolean);
    if (parts.length === 0) return null;
    return (n) => ranges.some(([, from, to]) => n >= Number(from) && n <= Number(to ?? from));
  };
}
