// Where requests can go: which backends are up, how busy they are, what failed last.
import { call } from "../api.js";
import { html, useEffect, useState } from "../lib.js";
import { number, since, span, t } from "../i18n.js";
import { Bones, Card, CopyLine, Failure, Note, Pill, Table } from "../parts.js";
import { me, told } from "../store.js";

const HEAD = () => [[t("name")], [t("state")], [t("pool")], [t("running"), "num"], [t("queued"), "num"], [t("mean"), "num"], [t("chosen_times"), "num"], [t("last_used"), "num"]];

function rowOf(one) {
  const kind = !one.is_up ? "bad" : one.breaker !== "closed" || one.standing !== "ready" ? "warn" : "good";
  const errors = [...(one.errors ?? []), ...one.endpoints.map((end) => end.last_error).filter(Boolean)];
  return html`<tr key=${one.name}><td><b>${one.name}</b><div class="dim">${one.kind}${one.url ? ` · ${one.url}` : ""}</div></td>
    <td><${Pill} kind=${kind}>${one.is_up ? t(`standing_${one.standing}`) : t("down")}</${Pill}><div class="dim">${one.detail}</div>${errors.slice(0, 2).map((text) => html`<div class="dim">${String(text)}</div>`)}</td>
    <td>${one.pool}</td><td class="num">${number(one.running ?? one.in_flight)}${one.limit ? ` / ${one.limit}` : ""}</td><td class="num">${number(one.waiting)}</td>
    <td class="num">${one.mean_s == null ? "–" : span(one.mean_s * 1000)}</td><td class="num">${number(one.chosen_total)}</td>
    <td class="num dim">${one.last_used_at_s ? since(one.last_used_at_s) : "–"}</td></tr>`;
}

/** The page. */
export function Backends() {
  const [strategy, setStrategy] = useState(null);
  const [error, setError] = useState(null);
  const isOperator = me.value?.role === "operator";
  useEffect(() => void call("api/v1/loadbalancer/strategy").then((one) => setStrategy(one.strategy), setError), []);
  const put = (event) => call("api/v1/loadbalancer/strategy", { method: "PUT", json: { strategy: event.target.value } }).then((one) => { setStrategy(one.strategy); setError(null); }, setError);
  const shown = told.value.backends;
  if (!isOperator) return html`<${Card}><${Failure} error=${{ message: t("operators_only") }} /></${Card}>`;
  if (!shown) return html`<${Card}><${Bones} lines=${4} /></${Card}>`;
  const known = ["least_busy", "round_robin", "equal_weighted", "weighted_round_robin", "least_connections", "least_response_time", "power_of_two", "prefix_affinity"];
  return html`<${Card} bare title=${t("backends")} aside=${strategy && html`<label class="row">${t("strategy")} <select value=${strategy} onChange=${put}>${[...new Set([...known, strategy])].map((name) => html`<option value=${name} selected=${name === strategy}>${name}</option>`)}</select></label>`}>
      ${error && html`<div class="body"><${Failure} error=${error} /></div>`}
      <${Table} caption=${t("backends")} head=${HEAD()} rows=${shown.backends.map(rowOf)} empty=${t("no_backends")} /></${Card}>
    <${Card} title=${t("add_backend")}><div class="stack"><p>${t("add_backend_says")}</p><${CopyLine} text="appliance ctl backends add http://HOST:8080" />
      <p>${t("add_hosted_says")}</p><${CopyLine} text="NOVITA_API_KEY=… appliance serve" /></div></${Card}>`;
}
