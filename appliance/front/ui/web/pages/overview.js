// What is going on, at a glance; at first: what should answer?
import { addressOf } from "../api.js";
import { html, useState } from "../lib.js";
import { number, t } from "../i18n.js";
import { BackendAreas, MemoryBar, ModelsOverTime, Sparkline } from "../charts.js";
import { Bones, Card, CopyLine, Icon, Note, Pill, Tile } from "../parts.js";
import { history, me, told } from "../store.js";
import { Receipt, RequestTable } from "./requests.js";

const LineTile = ({ values, kind, ...tile }) => html`<${Tile} ...${tile}>
  <${Sparkline} values=${values} kind=${kind} label=${t("over_the_hour", { label: tile.label })} /></${Tile}>`;

function Tiles() {
  const { samples } = history.value;
  const last = samples.at(-1) ?? { requests: 0, tokens: 0, errors: 0 };
  const load = told.value.load ?? { running: 0, queued: 0 };
  const minute = samples.slice(-6);
  const asked = minute.reduce((sum, one) => sum + one.requests, 0);
  const failed = minute.reduce((sum, one) => sum + one.errors, 0);
  const shown = samples.slice(-90);
  return html`<div class="tiles">
    <${LineTile} label=${t("requests")} value=${number(last.requests)} unit=${t("per_s")} kind="0" values=${shown.map((one) => one.requests)} />
    <${LineTile} label=${t("tokens")} value=${number(last.tokens)} unit=${t("per_s")} kind="1" values=${shown.map((one) => one.tokens)} />
    <${LineTile} label=${t("in_queue")} value=${number(load.queued)} unit=${t("n_running", { n: load.running })} kind="2" values=${shown.map((one) => one.queued)} />
    <${LineTile} label=${t("errors")} value=${number(asked ? (failed / asked) * 100 : 0)} unit=${t("percent_minute")} kind="3" values=${shown.map((one) => one.errors)} />
  </div>`;
}

const FirstRun = () => html`<${Card}>
  <div class="row"><${Pill} kind="good">${t("status_serving")}</${Pill}><span>${t("demo_says")}</span></div>
  <h1 style=${{ marginTop: "12px" }}>${t("what_should_answer")}</h1>
  <div class="choices">
    ${[["downloads", "get_model", "#/models"], ["backends", "use_engines", "#/backends"], ["out", "relay", "#/backends"]].map(
      ([icon, id, to]) => html`<a class="choice" href=${to}><${Icon} name=${icon} /><h3>${t(id)}</h3><p>${t(`${id}_says`)}</p></a>`,
    )}
  </div></${Card}>`;

/** The page. */
export function Overview() {
  const [open, setOpen] = useState(null);
  const { status, models, memory, backends, requests } = told.value;
  if (!status || !models) return html`<${Card}><${Bones} lines=${5} /></${Card}>`;
  const table = models.table;
  const names = Object.keys(table);
  const loaded = names.filter((name) => table[name].status === "ready").length;
  const up = (backends?.backends ?? []).filter((one) => one.is_up).length;
  const base = addressOf("v1");
  const isDemo = me.value?.parts?.demo;
  const warnings = backends?.warnings ?? [];
  const curl = `curl ${base}/chat/completions -H 'content-type: application/json' \\\n     -d '{"messages": [{"role": "user", "content": "Hello"}]}'`;
  return html`
    ${warnings.length > 0 && html`<${Note} kind="warn">${warnings.map((text) => html`<div>${text}</div>`)}</${Note}>`}
    ${isDemo ? html`<${FirstRun} />` : html`<div class="row">
      <${Pill} kind=${status.ok ? "good" : "warn"} busy=${!status.ok}>${t(`status_${status.state}`)}</${Pill}>
      ${names.length > 0 && html`<span>${t("models_loaded", { n: loaded, all: names.length })}</span>`}
      ${backends && html`<span>${t("backends_up", { n: up, all: backends.backends.length })}</span>`}
      <div class="grow"></div><${CopyLine} label=${t("base_url")} text=${base} /></div>
      <${Tiles} />`}
    ${isDemo && html`<${Card} title=${t("try_anywhere")}><div class="stack"><${CopyLine} label=${t("base_url")} text=${base} /><pre class="code" tabindex="0">${curl}</pre></div></${Card}>`}
    ${!isDemo && html`<div class="cols">
      <${Card} title=${t("memory")}>${memory?.devices ? html`<div class="stack">${memory.devices.map((one) => html`<${MemoryBar} device=${one} models=${memory.models} names=${names} />`)}</div>` : html`<p class="dim">${t("no_models_here")}</p>`}</${Card}>
      <${Card} title=${t("by_backend")} aside=${t("per_s")}>${history.value.samples.some((one) => Object.keys(one.backends).length) ? html`<${BackendAreas} samples=${history.value.samples} />` : html`<p class="dim">${t("no_requests_hour")}</p>`}</${Card}>
    </div>`}
    ${names.length > 0 && html`<${Card} title=${t("models_over_time")} aside=${t("pale_is_loading")}>
      <${ModelsOverTime} marks=${history.value.marks} table=${table} names=${names} /></${Card}>`}
    ${requests && html`<${Card} bare title=${t("latest_requests")} aside=${html`<a href="#/requests">${t("all")}</a>`}>
      <${RequestTable} receipts=${requests.slice(0, 7)} open=${setOpen} empty=${t("no_requests")} /></${Card}>`}
    ${open && html`<${Receipt} receipt=${open} onClose=${() => setOpen(null)} />`}`;
}
