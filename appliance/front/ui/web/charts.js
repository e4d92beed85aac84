// Pictures, each with a sentence for those who do not see it.
import { html } from "./lib.js";
import { money, size, t } from "./i18n.js";

/** The place of a name among names: its colour on every page. @param {string[]} names @param {string} name */
export const colourOf = (names, name) => `k${Math.max(0, names.indexOf(name)) % 6}`;

/** @param {{values: number[], kind: string, label: string}} props */
export function Sparkline({ values, kind, label }) {
  const shown = values.length > 1 ? values : [0, 0];
  const top = Math.max(...shown, 1e-9);
  const points = shown.map((value, at) => `${(at / (shown.length - 1)) * 100},${38 - (value / top) * 34}`).join(" ");
  return html`<svg viewBox="0 0 100 40" preserveAspectRatio="none" role="img" aria-label=${label}>
    <polygon class=${`area k${kind}`} points=${`0,40 ${points} 100,40`} /><polyline class=${`line s${kind}`} points=${points} /></svg>`;
}

/** Who takes a device's memory. */
export function MemoryBar({ device, models, names }) {
  const total = device.total_mb || 1;
  const parts = models.filter((one) => one.vram_used_mb > 0).map((one) => ({ name: one.model_alias, mb: one.vram_used_mb, kind: colourOf(names, one.model_alias) }));
  const others = Math.max(0, device.used_mb - parts.reduce((sum, one) => sum + one.mb, 0));
  const all = [...parts, { name: t("others"), mb: others, kind: "k-other" }];
  const said = all.map((one) => `${one.name} ${size(one.mb * 1e6)}`).join(", ");
  return html`<div>
    <div class="row"><span class="grow">${device.name}</span><span><b>${size(device.used_mb * 1e6)}</b> ${t("of")} ${size(total * 1e6)}</span></div>
    <div class="bar" role="img" aria-label=${said}>${all.map((one) => html`<i class=${one.kind} style=${{ width: `${(one.mb / total) * 100}%` }}></i>`)}</div>
    <div class="legend">${all.map((one) => html`<span><i class=${one.kind}></i>${one.name}<b>${size(one.mb * 1e6)}</b></span>`)}
      <span><i class="k-free"></i>${t("free")}<b>${size(device.free_mb * 1e6)}</b></span></div>
  </div>`;
}

/** How much each backend was asked, over time. */
export function BackendAreas({ samples }) {
  const names = [...new Set(samples.flatMap((one) => Object.keys(one.backends)))].slice(0, 6);
  const sums = samples.map((one) => names.reduce((sum, name) => sum + (one.backends[name] ?? 0), 0));
  const top = Math.max(...sums, 1e-9);
  const x = (at) => (at / Math.max(1, samples.length - 1)) * 300;
  const floor = samples.map(() => 0);
  const layers = names.map((name, place) => {
    const lower = samples.map((_, at) => `${x(at)},${100 - (floor[at] / top) * 92}`);
    samples.forEach((one, at) => (floor[at] += one.backends[name] ?? 0));
    const upper = samples.map((_, at) => `${x(at)},${100 - (floor[at] / top) * 92}`);
    return html`<polygon class=${`k${place % 6}`} points=${[...upper, ...lower.reverse()].join(" ")} />`;
  });
  return html`<div><svg viewBox="0 0 300 100" preserveAspectRatio="none" width="100%" height="110" role="img"
      aria-label=${t("backends_over_time", { names: names.join(", ") })}>${layers}</svg>
    <div class="legend">${names.map((name, place) => html`<span><i class=${`k${place % 6}`}></i>${name}</span>`)}</div></div>`;
}

/** What each day cost, by model. @param {{rows: {day: string, model: string, cost: number}[]}} props */
export function DailySpend({ rows }) {
  const names = [...new Set(rows.map((one) => one.model))].slice(0, 6);
  const days = [...Array(30).keys()].map((at) => new Date(Date.now() - (29 - at) * 86_400_000).toISOString().slice(0, 10));
  const sums = days.map((day) => rows.filter((one) => one.day === day).reduce((sum, one) => sum + one.cost, 0));
  const top = Math.max(...sums, 1e-9);
  const bars = days.map((day, at) => {
    let floor = 0;
    return rows.filter((one) => one.day === day).map((one) => {
      const height = (one.cost / top) * 92;
      floor += height;
      return html`<rect class=${colourOf(names, one.model)} x=${at * 10 + 1} y=${100 - floor} width="8" height=${Math.max(0.5, height)} />`;
    });
  });
  const whole = sums.reduce((sum, one) => sum + one, 0);
  return html`<div><svg viewBox="0 0 300 100" preserveAspectRatio="none" width="100%" height="130" role="img" aria-label=${t("spend_said", { total: money(whole) })}>${bars}</svg>
    <div class="legend">${names.map((name) => html`<span><i class=${colourOf(names, name)}></i>${name}</span>`)}<span class="grow"></span><span>${t("in_all")} <b>${money(whole)}</b></span></div></div>`;
}

const BUSY = new Set(["starting", "loading"]);

/** Which models were in memory when. */
export function ModelsOverTime({ marks, table, names, span_s = 3600 }) {
  const end = Date.now() / 1000;
  const shown = names.slice(0, 12);
  const begun = marks.length ? Math.min(...marks.map((one) => one.at_s)) : end - 60;
  const begin = Math.max(end - span_s, Math.min(begun, end - 60));
  const part = (at_s) => ((Math.max(at_s, begin) - begin) / (end - begin)) * 100;
  const minutes = (end - begin) / 60;
  const rows = shown.map((name) => {
    const changes = marks.filter((one) => one.model === name);
    if (!changes.length && table[name]?.status !== "off") changes.push({ at_s: begin, status: table[name]?.status });
    const bars = changes.map((one, at) => {
      if (one.status === "off" || one.status === "unknown") return null;
      const till = changes[at + 1]?.at_s ?? end;
      const kind = one.status === "failed" || one.status === "crashed" ? "k-failed" : `${colourOf(names, name)} ${BUSY.has(one.status) ? "loading" : ""}`;
      return till > begin && html`<i class=${kind} style=${{ left: `${part(one.at_s)}%`, width: `${Math.max(0.3, part(till) - part(one.at_s))}%` }}></i>`;
    });
    return html`<div class="name">${name}</div><div class="track">${bars}</div>`;
  });
  return html`<div class="times" role="img" aria-label=${t("models_over_time_said", { names: shown.join(", ") })}>${rows}
    <div></div><div class="axis"><span>${t("minutes_ago", { n: minutes.toFixed(minutes < 10 ? 1 : 0) })}</span><span>${t("now")}</span></div></div>`;
}
