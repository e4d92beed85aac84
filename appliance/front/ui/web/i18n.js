// The words of the pages: strings/LANGUAGE.json, id → text with {name}. Numbers and times are rendered by the browser.

let words = {};

/** Read the words; English where there are none in the reader's language. */
export async function loadWords() {
  const answer = await fetch("strings/en.json");
  words = await answer.json();
}

/** Return a text. @param {string} id @param {Record<string, unknown>} [values] */
export function t(id, values = {}) {
  const text = words[id] ?? id;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

const whole = new Intl.NumberFormat();
const one = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });
const ago = new Intl.RelativeTimeFormat(undefined, { numeric: "auto", style: "short" });

/** Render a number: one decimal below 100. @param {number | null | undefined} value */
export const number = (value) =>
  value == null || !Number.isFinite(value) ? "–" : Math.abs(value) < 100 ? one.format(value) : whole.format(Math.round(value));

/** Render dollars: cents, and more decimals where it is less than a cent. @param {number} dollars */
export const money = (dollars) =>
  new Intl.NumberFormat(undefined, { style: "currency", currency: "USD", maximumFractionDigits: dollars && Math.abs(dollars) < 1 ? 6 : 2 }).format(dollars);

/** Render bytes in units of 1000, as memory and disks are sold. @param {number} bytes */
export function size(bytes) {
  let value = bytes, unit = 0;
  while (value >= 1000 && unit < 4) { value /= 1000; unit += 1; }
  return `${number(value)} ${["B", "kB", "MB", "GB", "TB"][unit]}`;
}

/** Render milliseconds. @param {number | null | undefined} ms */
export function span(ms) {
  if (ms == null || !Number.isFinite(ms)) return "–";
  if (ms < 1000) return `${number(ms)} ms`;
  return ms < 60_000 ? `${number(ms / 1000)} s` : `${number(ms / 60_000)} min`;
}

/** Render how long ago a moment was. @param {number} at_s */
export function since(at_s) {
  const seconds = Math.round(Date.now() / 1000 - at_s);
  if (seconds < 2) return t("now");
  if (seconds < 60) return ago.format(-seconds, "second");
  if (seconds < 3600) return ago.format(-Math.round(seconds / 60), "minute");
  if (seconds < 86_400) return ago.format(-Math.round(seconds / 3600), "hour");
  return ago.format(-Math.round(seconds / 86_400), "day");
}

/** Render a moment. @param {number} at_s */
export const moment = (at_s) => new Date(at_s * 1000).toLocaleString();
