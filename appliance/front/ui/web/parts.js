// The parts that pages are made of.
import { html, signal, useEffect, useRef, useState } from "./lib.js";
import { t } from "./i18n.js";

const ICONS = {
  overview: "M4 20V10M10 20V4M16 20v-7M3 20h18",
  models: "M12 3l8 4.5v9L12 21l-8-4.5v-9L12 3zM4 7.5l8 4.5 8-4.5M12 12v9",
  playground: "M4 5h16v11H9l-5 4V5z",
  requests: "M4 6h16M4 12h16M4 18h10",
  backends: "M4 5h16v6H4zM4 13h16v6H4zM8 8h.01M8 16h.01",
  downloads: "M12 4v11M7 11l5 5 5-5M4 20h16",
  moon: "M20 14.5A8 8 0 019.5 4 8 8 0 1020 14.5z",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  close: "M6 6l12 12M18 6L6 18",
  send: "M12 19V6M6 12l6-6 6 6",
  stop: "M7 7h10v10H7z",
  play: "M8 5l11 7-11 7V5z",
  eject: "M5 15l7-8 7 8H5zM5 19h14",
  pin: "M9 3h6l-1 7 3 3H7l3-3-1-7zM12 13v8",
  retry: "M20 12a8 8 0 11-2.5-5.8M20 4v4h-4",
  keys: "M14 10a4 4 0 10-3.5 4L12 16h2v2h2v2h4v-3l-6-6zM8.5 9.5h.01",
  usage: "M4 19V9M9 19V5M14 19v-7M19 19V8M3 19h18",
  users: "M9 11a3.5 3.5 0 100-7 3.5 3.5 0 000 7zM3 20c0-3.5 2.7-6 6-6s6 2.5 6 6M16 4.5a3.5 3.5 0 010 6.6M18 14.5c1.9.9 3 2.9 3 5.5",
  out: "M10 4H5v16h5M14 8l5 4-5 4M9 12h10",
};

/** @param {{name: string}} props */
export const Icon = ({ name }) =>
  html`<svg class="ico" viewBox="0 0 24 24" aria-hidden="true"><path d=${ICONS[name] ?? ""} /></svg>`;

export const Card = ({ title, aside, children, bare }) => html`<section class="card">
  ${title && html`<header><h2>${title}</h2>${aside && html`<div class="aside">${aside}</div>`}</header>`}
  ${bare ? children : html`<div class="body">${children}</div>`}
</section>`;

/** A number that is seen at once, with a picture below it where there is one. */
export const Tile = ({ label, value, unit, children }) => html`<div class="tile"><div class="words">
  <div class="label">${label}</div><div class="value">${value} <span class="unit">${unit}</span></div></div>${children}</div>`;

export const Pill = ({ kind = "", busy, children }) => html`<span class=${`pill ${kind} ${busy ? "busy" : ""}`}>${children}</span>`;

export const Note = ({ kind = "bad", children }) => html`<div class=${`note ${kind}`} role=${kind === "bad" ? "alert" : "note"}>${children}</div>`;

export const Empty = ({ children, action }) => html`<div class="empty"><div>${children}</div>${action}</div>`;

export const Bones = ({ lines = 3 }) => html`<div class="stack" aria-hidden="true">${Array.from({ length: lines }, () => html`<div class="bones"></div>`)}</div>`;

/** A button; while its action runs it is disabled, and what fails is given to `onError`. */
export function Button({ icon, label, kind = "", onClick, onError, pressed, disabled, iconOnly, type = "button" }) {
  const [busy, setBusy] = useState(false);
  const act = async () => {
    setBusy(true);
    try {
      await onClick?.();
      onError?.(null);
    } catch (error) {
      onError ? onError(error) : said.value = error.message;
    } finally {
      setBusy(false);
    }
  };
  return html`<button type=${type} class=${`button ${kind} ${iconOnly ? "icon" : ""}`} disabled=${disabled || busy}
    aria-label=${iconOnly ? label : undefined} title=${iconOnly ? label : undefined}
    aria-pressed=${pressed == null ? undefined : String(pressed)} onClick=${type === "submit" ? undefined : act}>
    ${icon && html`<${Icon} name=${icon} />`}${iconOnly ? null : label}</button>`;
}

/** What was done last, for screen readers, and failures that belong to no block. */
export const said = signal("");

export async function copy(text) {
  await navigator.clipboard.writeText(text);
  said.value = t("copied");
}

export const CopyLine = ({ label, text }) => html`<div class="copyline">
  ${label && html`<span class="label">${label}</span>`}<code tabindex="0">${text}</code>
  <${Button} icon="copy" iconOnly kind="ghost" label=${t("copy")} onClick=${() => copy(text)} />
</div>`;

/** What failed, and a way to try again. */
export const Failure = ({ error, retry }) => error && html`<${Note}>
  ${error.message}${error.id ? html` <span class="mono">${error.id}</span>` : null}
  ${retry && html`<div><${Button} label=${t("try_again")} icon="retry" onClick=${retry} /></div>`}
</${Note}>`;

export const Segment = ({ label, value, options, onChange }) => html`<div class="segment" role="group" aria-label=${label}>
  ${options.map(([id, text]) => html`<button type="button" aria-pressed=${String(id === value)} onClick=${() => onChange(id)}>${text}</button>`)}
</div>`;

/** A drawer at the right; the browser keeps the focus in it, and gives it back. */
export function Drawer({ title, onClose, children }) {
  const box = useRef(null);
  useEffect(() => {
    box.current.showModal();
  }, []);
  const onClick = (event) => event.target === box.current && box.current.close();
  return html`<dialog class="drawer" ref=${box} onClose=${onClose} onClick=${onClick} aria-labelledby="drawer-title">
    <header><h2 id="drawer-title">${title}</h2>
      <${Button} icon="close" iconOnly kind="ghost" label=${t("close")} onClick=${() => box.current.close()} /></header>
    <div class="body">${children}</div>
  </dialog>`;
}

/** A table, or a sentence where it is empty. */
export const Table = ({ caption, head, rows, empty }) => rows.length
  ? html`<div class="scroll" tabindex="0" role="region" aria-label=${caption}><table><caption class="visually-hidden">${caption}</caption>
      <thead><tr>${head.map(([text, kind]) => html`<th scope="col" class=${kind ?? ""}>${text}</th>`)}</tr></thead><tbody>${rows}</tbody></table></div>`
  : html`<${Empty}>${empty}</${Empty}>`;

const STATUS = {
  ready: ["good", false], stopping: ["", true], loading: ["warn", true], starting: ["warn", true],
  off: ["", false], failed: ["bad", false], crashed: ["bad", false], serving: ["good", false],
};

/** The state of a model, in word, shape and colour. */
export function StatePill({ status }) {
  const [kind, busy] = STATUS[status] ?? ["", false];
  return html`<${Pill} kind=${kind} busy=${busy}>${t(`status_${status}`)}</${Pill}>`;
}

/** The HTTP status of a response. @param {{receipt: any}} props */
export const ResultPill = ({ receipt }) => html`<${Pill}
  kind=${receipt.status < 400 && receipt.finish !== "cut_off" && receipt.finish !== "error" ? "good" : receipt.status < 500 && receipt.finish !== "cut_off" ? "warn" : "bad"}>
  ${receipt.status || "–"}</${Pill}>`;
