// The models of this machine: load, unload, pin, get another one.
import { blocksOf, call, request } from "../api.js";
import { html, useState } from "../lib.js";
import { since, size, t } from "../i18n.js";
import { MemoryBar, colourOf } from "../charts.js";
import { Bones, Button, Card, Empty, Failure, Note, StatePill } from "../parts.js";
import { me, told } from "../store.js";

const act = (alias, verb) => call(`v1/models/${encodeURIComponent(alias)}/${verb}`, { method: "POST", json: {} });

function ModelRow({ model, row, names, total_mb, isOperator }) {
  const [error, setError] = useState(null);
  const { alias, status } = model;
  const isLoaded = status === "ready" || status === "stopping";
  const isBusy = status === "loading" || status === "starting";
  const hasFailed = status === "failed" || status === "crashed";
  const used = row?.vram_used_mb ?? 0;
  return html`<div class="model-row">
    <div><div class="name">${alias}</div><div class="dim">${model.port ? t("port_n", { n: model.port }) : t("not_running")}</div></div>
    <div class="row"><${StatePill} status=${status} /><span class="dim">${isBusy && model.load_progress != null ? `${model.load_progress} %` : model.last_used_at ? since(Date.parse(model.last_used_at) / 1000) : ""}</span></div>
    <div>${used > 0 ? html`<div>${size(used * 1e6)}</div><div class="bar thin" role="img" aria-label=${size(used * 1e6)}><i class=${colourOf(names, alias)} style=${{ width: `${(used / total_mb) * 100}%` }}></i></div>` : "–"}</div>
    <div class="row">${isOperator && html`
      ${isLoaded || isBusy
        ? html`<${Button} icon="eject" label=${t("unload")} onError=${setError} onClick=${() => call("v1/models/eject", { method: "POST", json: { model: alias, force: isBusy } })} />`
        : html`<${Button} icon=${hasFailed ? "retry" : "play"} label=${hasFailed ? t("try_again") : t("load")} onError=${setError}
            onClick=${async () => { if (hasFailed) await act(alias, "reset"); await act(alias, "load"); }} />`}
      <${Button} icon="pin" iconOnly kind="ghost" label=${model.pinned ? t("unpin") : t("pin")} pressed=${model.pinned} onError=${setError} onClick=${() => act(alias, model.pinned ? "unpin" : "pin")} />`}</div>
    ${(model.error_message || error) && html`<div class="wide"><${Note}>${error?.message ?? model.error_message}</${Note}></div>`}
  </div>`;
}

function GetModel() {
  const [source, setSource] = useState("");
  const [progress, setProgress] = useState(null);
  const [error, setError] = useState(null);
  async function get(event) {
    event.preventDefault();
    setError(null);
    setProgress({ status: t("asking") });
    try {
      const name = source.trim().replace(/^(https:\/\/)?(huggingface\.co|hf\.co)\//, "").replace(/^hf:\/\//, "");
      const answer = await request("api/pull", { method: "POST", json: { model: `hf.co/${name}`, stream: true } });
      for await (const line of blocksOf(answer, /\n/)) {
        if (!line.trim()) continue;
        const value = JSON.parse(line);
        if (value.error) throw new Error(value.error);
        setProgress(value);
      }
      setProgress({ status: t("got_it"), done: true });
    } catch (failed) {
      setProgress(null);
      setError(failed);
    }
  }
  const part = progress?.total ? (progress.completed ?? 0) / progress.total : null;
  return html`<form class="stack" onSubmit=${get}>
    <label class="field">${t("hf_repository")}<input required value=${source} placeholder="bartowski/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M" onInput=${(event) => setSource(event.target.value)} /></label>
    <div class="row"><${Button} type="submit" kind="main-action" icon="downloads" label=${t("download")} disabled=${progress !== null && !progress.done} />
      <span class="dim" role="status">${progress ? `${progress.status}${part === null ? "" : ` · ${Math.round(part * 100)} % ${t("of")} ${size(progress.total)}`}` : t("download_says")}</span></div>
    ${part !== null && html`<div class="bar thin"><i class="k0" style=${{ width: `${part * 100}%` }}></i></div>`}
    <${Failure} error=${error} />
  </form>`;
}

/** The page. */
export function Models() {
  const [words, setWords] = useState("");
  const { models, memory } = told.value;
  const isOperator = me.value?.role === "operator";
  if (!models) return html`<${Card}><${Bones} lines=${5} /></${Card}>`;
  const names = Object.keys(models.table);
  const shown = names.filter((name) => name.toLowerCase().includes(words.toLowerCase()));
  const elsewhere = models.cards.filter((one) => !(one.id in models.table));
  const rows = Object.fromEntries((memory?.models ?? []).map((one) => [one.model_alias, one]));
  const total_mb = memory?.gpu_info?.total_mb || 1;
  return html`
    ${memory?.devices && html`<${Card} title=${t("memory")}><div class="stack">${memory.devices.map((one) => html`<${MemoryBar} device=${one} models=${memory.models} names=${names} />`)}</div></${Card}>`}
    <${Card} bare title=${t("models_here")} aside=${names.length > 0 && html`<input type="search" aria-label=${t("find_model")} placeholder=${t("find_model")} value=${words} onInput=${(event) => setWords(event.target.value)} />`}>
      ${shown.map((name) => html`<${ModelRow} key=${name} model=${models.table[name]} row=${rows[name]} names=${names} total_mb=${total_mb} isOperator=${isOperator} />`)}
      ${names.length === 0 && html`<${Empty}>${t("no_models_here")}</${Empty}>`}
    </${Card}>
    ${elsewhere.length > 0 && html`<${Card} bare title=${t("models_elsewhere")}>${elsewhere.map((one) => html`<div class="model-row"><div class="name">${one.id}</div></div>`)}</${Card}>`}
    ${isOperator && html`<${Card} title=${t("get_model")}><${GetModel} /></${Card}>`}`;
}
