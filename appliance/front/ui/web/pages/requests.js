// The latest requests, and why each went where it went.
import { call } from "../api.js";
import { html, useEffect, useState } from "../lib.js";
import { moment, number, since, span, t } from "../i18n.js";
import { Bones, Button, Card, Drawer, Failure, ResultPill, Segment, Table, copy } from "../parts.js";
import { me, told } from "../store.js";

const HEAD = () => [[t("when")], [t("model")], [t("went_to")], [t("in_queue"), "num"], [t("total"), "num"], [t("tokens"), "num"], [t("result")]];

const rowOf = (receipt, open) => html`<tr key=${receipt.id}>
  <td class="dim">${since(receipt.at_s)}</td>
  <td><button type="button" class="link" onClick=${() => open(receipt)}>${receipt.public_model || receipt.model || receipt.route}</button></td>
  <td>${receipt.backend || "–"}</td>
  <td class="num dim">${receipt.queue_ms >= 1 ? span(receipt.queue_ms) : "–"}</td>
  <td class="num">${span(receipt.total_ms)}</td>
  <td class="num">${number(receipt.completion_tokens)}</td>
  <td><${ResultPill} receipt=${receipt} /></td></tr>`;

export const RequestTable = ({ receipts, open, empty }) => html`<${Table} caption=${t("requests")} head=${HEAD()}
  rows=${receipts.map((one) => rowOf(one, open))} empty=${empty} />`;

/** The words of a reason: how the model was named, and what decided among backends. */
const because = (reason) => reason.split(/,\s*/).filter(Boolean).map((word) => t(`reason_${word.split(/[ :(]/)[0]}`)).join("; ");

/** One receipt as a story. */
export function Receipt({ receipt, onClose }) {
  const first_ms = receipt.first_token_ms ?? receipt.queue_ms + receipt.upstream_ms;
  const waits = [[t("in_queue"), receipt.queue_ms, "k2"], [t("until_first"), Math.max(0, first_ms - receipt.queue_ms), "k0"], [t("response"), Math.max(0, receipt.total_ms - first_ms), "k1"]];
  const whole = waits.reduce((sum, one) => sum + one[1], 0) || 1;
  const failed = receipt.error || receipt.status >= 400;
  return html`<${Drawer} title=${t("why_there")} onClose=${onClose}>
    <div class="row"><${ResultPill} receipt=${receipt} /><code class="grow">${receipt.id}</code>
      <${Button} icon="copy" iconOnly kind="ghost" label=${t("copy")} onClick=${() => copy(receipt.id)} /></div>
    <ol class="story">
      <li><b>${t("asked")}</b> ${t("asked_for", { model: receipt.model || t("no_model"), route: receipt.route })}</li>
      ${receipt.queue_ms >= 1 && html`<li><b>${t("waited")}</b> ${t("waited_for", { span: span(receipt.queue_ms) })}</li>`}
      ${receipt.overflow && html`<li><b>${t("overflowed")}</b> ${receipt.overflow}</li>`}
      ${receipt.backend && html`<li><b>${t("chosen")}</b> ${t("chosen_in", { backend: receipt.backend, pool: receipt.pool || "default" })}${receipt.reason ? `: ${because(receipt.reason)}` : ""}</li>`}
      ${receipt.attempts.map((one) => html`<li class=${one.outcome === "ok" ? "" : "bad"}><b>${one.outcome === "ok" ? t("answered") : t("tried")}</b>
        ${t("attempt_by", { endpoint: one.endpoint || receipt.backend, outcome: one.status ?? one.outcome, span: span(one.ms) })}${one.note ? html`<div class="dim">${one.note}</div>` : ""}</li>`)}
      <li class=${failed ? "bad" : ""}><b>${t(`finish_${receipt.finish || "done"}`)}</b> ${t("after", { span: span(receipt.total_ms) })}${receipt.error ? html`<div>${receipt.error}</div>` : ""}</li>
    </ol>
    <div><div class="bar thin" role="img" aria-label=${waits.map(([name, ms]) => `${name} ${span(ms)}`).join(", ")}>
      ${waits.map(([, ms, kind]) => html`<i class=${kind} style=${{ width: `${(ms / whole) * 100}%` }}></i>`)}</div>
      <div class="legend">${waits.map(([name, ms, kind]) => html`<span><i class=${kind}></i>${name}<b>${span(ms)}</b></span>`)}</div></div>
    <dl class="pairs">
      <dt>${t("prompt")}</dt><dd>${t("n_tokens", { n: number(receipt.prompt_tokens) })}</dd>
      <dt>${t("response")}</dt><dd>${t("n_tokens", { n: number(receipt.completion_tokens) })}${receipt.streamed ? `, ${t("streamed")}` : ""}</dd>
      <dt>${t("served_model")}</dt><dd>${receipt.served_model || "–"}</dd>
      ${receipt.billing && html`<dt>${t("charged")}</dt><dd>$${number((receipt.billing.charged_musd ?? 0) / 1e6)}</dd>`}
      <dt>${t("when")}</dt><dd>${moment(receipt.at_s)}</dd>
    </dl>
    <p class="dim">${t("receipt_holds")}</p>
  </${Drawer}>`;
}

/** The page. */
export function Requests() {
  const [status, setStatus] = useState("");
  const [text, setText] = useState("");
  const [found, setFound] = useState(null);
  const [next, setNext] = useState(null);
  const [error, setError] = useState(null);
  const [open, setOpen] = useState(null);
  const isOperator = me.value?.role === "operator";
  const newest = told.value.requests?.[0]?.id;

  async function read(before = "") {
    const wanted = new URLSearchParams({ limit: "50" });
    if (status) wanted.set("status", status);
    if (before) wanted.set("before", before);
    const words = text.trim();
    try {
      if (words.startsWith("req_")) {
        setFound([await call(`receipts/${encodeURIComponent(words)}`)]);
        setNext(null);
      } else {
        if (words) wanted.set("model", words);
        const page = await call(`receipts?${wanted}`);
        setFound((former) => (before ? [...(former ?? []), ...page.receipts] : page.receipts));
        setNext(page.next);
      }
      setError(null);
    } catch (failed) {
      setError(failed);
    }
  }
  useEffect(() => void (isOperator && read()), [isOperator, status, text, newest]);
  if (!isOperator) return html`<${Card}><${Failure} error=${{ message: t("operators_only") }} /></${Card}>`;
  return html`<${Card} bare title=${t("requests")} aside=${html`
      <input type="search" aria-label=${t("find_request")} placeholder=${t("find_request")} value=${text} onInput=${(event) => setText(event.target.value)} />
      <${Segment} label=${t("result")} value=${status} onChange=${setStatus} options=${[["", t("all")], ["2xx", "2xx"], ["4xx", "4xx"], ["5xx", "5xx"]]} />`}>
    ${error && html`<div class="body"><${Failure} error=${error} retry=${() => read()} /></div>`}
    ${found === null && !error ? html`<div class="body"><${Bones} lines=${6} /></div>` : html`<${RequestTable} receipts=${found ?? []} open=${setOpen} empty=${t("no_requests")} />`}
    ${next && html`<div class="body"><${Button} label=${t("older")} onClick=${() => read(next)} /></div>`}
    ${open && html`<${Receipt} receipt=${open} onClose=${() => setOpen(null)} />`}
  </${Card}>`;
}
