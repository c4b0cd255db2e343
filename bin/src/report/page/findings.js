// The list of findings: what happened, where, why, by which rule.
"use strict";

report.findings = (data, showInTimeline) => {
  const { $, make, number, option } = report;
  const STEP = 50;
  const [run, kind, rule, vcpu, words] = ["f-run", "f-kind", "f-rule", "f-vcpu", "f-words"].map($);
  let shown = STEP;

  const now = () => data.runs[Number(run.value)];
  const fits = (f) => (kind.value === "" || f.kind === kind.value) && (rule.value === "" || f.rule === rule.value)
    && (vcpu.value === "" || f.vcpu === Number(vcpu.value))
    && (words.value === "" || JSON.stringify(f).toLowerCase().includes(words.value.trim().toLowerCase()));

  const pair = (term, ...what) => [make("dt", {}, term), make("dd", {}, ...what)];

  const body = (of, f, n) => {
    const law = of.rules[f.rule];
    const used = f.address ? `${f.mechanism}, address ${f.address}` : f.mechanism;
    const times = f.count > 1 ? `, ${number(f.count)} times` : "";
    const facts = make("dl", {}, ...pair("where", f.place), ...(f.cause ? pair("cause", make("code", {}, f.cause)) : []),
      ...pair("through", used + times), ...(law ? pair("rule", `${law.sentence} (${law.citation})`) : []),
      ...(law && law.elsewhere ? pair("elsewhere", law.elsewhere) : []));
    const steps = f.chain.map((step) => make("li", {}, make("b", {}, step.head), " ", make("span", {}, step.what),
      step.at ? make("span", { class: "at" }, ` — ${step.at}`) : ""));
    const chain = steps.length > 0 ? make("ol", { class: "chain", "aria-label": "Chain of cause" }, ...steps) : "";
    const look = of.timeline ? make("button", { type: "button", onclick: () => showInTimeline(Number(run.value), n) }, "Show in the timeline") : "";
    return make("div", { class: "body" }, facts, chain, look);
  };

  const entry = (of, f, n) => {
    const summary = make("summary", {}, make("span", { class: "number" }, `${n + 1}`), make("span", { class: "badge" }, f.accepted ? `${f.kind}, accepted` : f.kind),
      make("span", { class: "rule" }, f.rule), make("span", { class: "what" }, `${f.op} on v${f.vcpu}${f.place ? `, ${f.place}` : ""}`));
    const item = make("details", { class: `finding ${f.tone}` }, summary);
    item.dataset.finding = n;
    // The body is made when it is looked at: there may be thousands.
    item.addEventListener("toggle", () => { if (item.open) fill(item, of, f, n); });
    return item;
  };
  const fill = (item, of, f, n) => { if (item.children.length === 1) item.append(body(of, f, n)); };

  const list = () => {
    const of = now();
    const all = of.findings.map((f, n) => [f, n]).filter(([f]) => fits(f));
    $("f-list").replaceChildren(...all.slice(0, shown).map(([f, n]) => entry(of, f, n)));
    const more = of.more > 0 ? `; ${number(of.more)} more were counted and not kept (--max-findings keeps more)` : "";
    const part = all.length > shown ? `the first ${number(shown)} of ` : "";
    const filtered = all.length < of.findings.length ? ` that fit, of ${number(of.findings.length)}` : "";
    $("f-shown").textContent = of.findings.length === 0 ? "None." : `${part}${number(all.length)} findings${filtered}${more}.`;
    $("f-more").hidden = all.length <= shown;
  };

  const choices = (select, any, values) => select.replaceChildren(option("", any), ...values.map((value) => option(value, value)));
  const other = () => {
    const unique = (get) => [...new Set(now().findings.map(get))];
    choices(kind, "any", unique((f) => f.kind).sort());
    choices(rule, "any", unique((f) => f.rule).sort());
    choices(vcpu, "any", unique((f) => f.vcpu).sort((a, b) => a - b));
    again();
  };
  const again = () => { shown = STEP; list(); };

  run.append(...data.runs.map((of, n) => option(n, `${of.name} (${number(of.findings.length + of.more)})`)));
  run.parentElement.hidden = data.runs.length < 2;
  run.value = data.start;
  run.addEventListener("change", other);
  for (const control of [kind, rule, vcpu]) control.addEventListener("change", again);
  words.addEventListener("input", again);
  $("f-more").addEventListener("click", () => { shown += 4 * STEP; list(); });
  other();

  return {
    // Opens one finding of a run.
    open: (of, n) => {
      run.value = of;
      other();
      shown = Math.max(shown, n + 1);
      list();
      const item = $("f-list").querySelector(`[data-finding="${n}"]`);
      fill(item, data.runs[of], data.runs[of].findings[n], n);
      item.open = true;
      item.scrollIntoView({ block: "center" });
      item.querySelector("summary").focus({ preventScroll: true });
    },
    // On paper nothing can be opened: those that are listed are printed whole.
    unfold: () => {
      const of = now();
      for (const item of $("f-list").children) {
        const n = Number(item.dataset.finding);
        fill(item, of, of.findings[n], n);
        item.open = true;
      }
    },
  };
};
