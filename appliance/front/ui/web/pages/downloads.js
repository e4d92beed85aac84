// Downloads of model files: what runs, what failed, how to stop it.
import { call } from "../api.js";
import { html, useEffect, useState } from "../lib.js";
import { number, size, t } from "../i18n.js";
import { Bones, Button, Card, Empty, Failure, Pill } from "../parts.js";
import { me } from "../store.js";

const KIND = { completed: "good", succeeded: "good", running: "warn", failed: "bad", canceled: "", cancelled: "" };

/** The page. */
export function Downloads() {
  const [jobs, setJobs] = useState(null);
  const [error, setError] = useState(null);
  const isOperator = me.value?.role === "operator";
  const read = () => call("v1/jobs").then((found) => { setJobs(found.jobs); setError(null); }, setError);
  useEffect(() => {
    if (!isOperator) return undefined;
    read();
    const timer = setInterval(() => !document.hidden && read(), 2000);
    return () => clearInterval(timer);
  }, [isOperator]);
  if (!isOperator) return html`<${Card}><${Failure} error=${{ message: t("operators_only") }} /></${Card}>`;
  if (jobs === null && !error) return html`<${Card}><${Bones} /></${Card}>`;
  return html`<${Card} bare title=${t("downloads")}>
    ${error && html`<div class="body"><${Failure} error=${error} retry=${read} /></div>`}
    ${(jobs ?? []).length === 0 && !error && html`<${Empty} action=${html`<a class="button" href="#/models">${t("get_model")}</a>`}>${t("no_downloads")}</${Empty}>`}
    ${(jobs ?? []).map((job) => {
      const { done_bytes: done, total_bytes: all } = job.progress;
      return html`<div class="model-row" key=${job.id}><div><div class="name">${job.source}</div><div class="dim">${job.output_dir}</div></div>
        <div><${Pill} kind=${KIND[job.state] ?? ""} busy=${job.state === "running"}>${job.state}</${Pill}></div>
        <div>${all ? `${size(done)} ${t("of")} ${size(all)} · ${number((done / all) * 100)} %` : size(done)}</div>
        <div>${job.state === "running" && html`<${Button} label=${t("stop")} icon="stop" onError=${setError} onClick=${() => call(`v1/jobs/${encodeURIComponent(job.id)}`, { method: "DELETE" }).then(read)} />`}</div>
        ${job.error && html`<div class="wide"><${Failure} error=${{ message: typeof job.error === "string" ? job.error : job.error.message }} /></div>`}</div>`;
    })}</${Card}>`;
}
