// What a user has: keys, credits, and what was used. Loaded when one of these pages is opened first.
import { call } from "../api.js";
import { html, useEffect, useState } from "../lib.js";
import { money, number, since, t } from "../i18n.js";
import { Bones, Button, Card, CopyLine, Drawer, Failure, Note, Pill, Table, Tile } from "../parts.js";
import { DailySpend } from "../charts.js";

const BASE = "api/v1";
const at = (text) => (text ? since(Date.parse(text) / 1000) : "–");

/** Read something when the page opens, and again. @param {() => Promise<any>} read */
function useRead(read, again = []) {
  const [state, setState] = useState({ value: null, error: null });
  const reread = () => read().then((value) => setState({ value, error: null }), (error) => setState((former) => ({ ...former, error })));
  useEffect(() => void reread(), again);
  return { ...state, reread };
}

function NewKey({ onMade }) {
  const [name, setName] = useState("");
  const [error, setError] = useState(null);
  const make = async (event) => {
    event.preventDefault();
    try {
      onMade(await call(`${BASE}/auth/apikey`, { method: "POST", json: { name: name.trim() } }));
      setName("");
      setError(null);
    } catch (failed) {
      setError(failed);
    }
  };
  return html`<form class="stack" onSubmit=${make}><div class="row"><label class="field grow">${t("key_name")}<input required maxlength="100" value=${name} onInput=${(event) => setName(event.target.value)} /></label></div>
    <div><${Button} type="submit" kind="main-action" label=${t("make_key")} /></div><${Failure} error=${error} /></form>`;
}

/** The keys of the user. */
export function Keys() {
  const { value, error, reread } = useRead(() => call(`${BASE}/auth/apikey`));
  const [made, setMade] = useState(null);
  const [failed, setFailed] = useState(null);
  const [asked, setAsked] = useState(null);
  const row = (key) => html`<tr key=${key.id}><td><b>${key.name}</b><div class="dim mono">${key.prefix}…</div></td>
    <td>${key.is_active ? html`<${Pill} kind="good">${t("active")}</${Pill}>` : html`<${Pill}>${t("revoked")}</${Pill}>`}</td>
    <td class="dim">${key.scopes.join(", ")}</td><td class="dim">${at(key.last_used_at)}</td><td class="dim">${key.expires_at ? new Date(key.expires_at).toLocaleDateString() : t("never")}</td>
    <td class="num">${key.is_active && html`<${Button} label=${t("revoke")} onClick=${() => setAsked(key)} />`}</td></tr>`;
  const revoke = () => call(`${BASE}/auth/apikey/${encodeURIComponent(asked.id)}`, { method: "DELETE" }).then(() => { setAsked(null); return reread(); });
  return html`
    <${Card} title=${t("make_key_title")}><${NewKey} onMade=${(key) => { setMade(key); reread(); }} />
      ${made && html`<div class="stack"><${Note} kind="info">${t("key_once")}</${Note}><${CopyLine} text=${made.api_key} /></div>`}</${Card}>
    <${Card} bare title=${t("keys")}>
      ${(error || failed) && html`<div class="body"><${Failure} error=${error ?? failed} retry=${reread} /></div>`}
      ${value === null && !error ? html`<div class="body"><${Bones} /></div>` : value && html`<${Table} caption=${t("keys")} empty=${t("no_keys")}
        head=${[[t("name")], [t("state")], [t("scopes")], [t("last_used")], [t("expires")], ["", "num"]]} rows=${value.api_keys.map(row)} />`}
    </${Card}>
    ${asked && html`<${Drawer} title=${t("revoke_key", { name: asked.name })} onClose=${() => setAsked(null)}>
      <p>${t("revoke_says")}</p><div><${Button} kind="main-action" label=${t("revoke")} onClick=${revoke} onError=${setFailed} /></div></${Drawer}>`}`;
}

/** Credits, and what they went to. */
export function Usage() {
  const credits = useRead(() => call(`${BASE}/billing/credits`));
  const sums = useRead(() => call(`${BASE}/billing/usage?group=day,model`));
  const [before, setBefore] = useState([]);
  const attempts = useRead(() => call(`${BASE}/billing/usage?limit=25${before.length ? `&before=${encodeURIComponent(before.at(-1))}` : ""}`), [before.length]);
  const have = credits.value;
  const models = new Map();
  for (const row of sums.value?.usage ?? []) {
    const sum = models.get(row.model) ?? { attempts: 0, tokens: 0, cost: 0 };
    models.set(row.model, { attempts: sum.attempts + row.attempts, tokens: sum.tokens + row.tokens_in + row.tokens_out, cost: sum.cost + row.cost });
  }
  return html`
    ${credits.error ? html`<${Card}><${Failure} error=${credits.error} retry=${credits.reread} /></${Card}>` : have && html`<div class="tiles">
      <${Tile} label=${t("credits_left")} value=${money(have.credits_remaining)} unit=${t("of_total", { total: money(have.credits_total) })} />
      <${Tile} label=${t("credits_held")} value=${money(have.credits_held)} />
      <${Tile} label=${t("credits_overage")} value=${money(have.credits_overage)} unit=${have.credits_cap ? t("of_total", { total: money(have.credits_cap) }) : ""} />
      <${Tile} label=${t("renews")} value=${have.credits_auto_renew && have.period_end ? new Date(have.period_end).toLocaleDateString() : t("no")} /></div>`}
    <${Card} title=${t("spend_by_day")} aside=${t("last_30_days")}>${sums.error ? html`<${Failure} error=${sums.error} retry=${sums.reread} />`
      : sums.value ? (sums.value.usage.length ? html`<${DailySpend} rows=${sums.value.usage} />` : html`<p class="dim">${t("nothing_used")}</p>`) : html`<${Bones} />`}</${Card}>
    ${models.size > 0 && html`<${Card} bare title=${t("by_model")}><${Table} caption=${t("by_model")} empty="" head=${[[t("model")], [t("requests"), "num"], [t("tokens"), "num"], [t("cost"), "num"]]}
      rows=${[...models].sort((one, other) => other[1].cost - one[1].cost).map(([name, sum]) => html`<tr><td>${name}</td><td class="num">${number(sum.attempts)}</td><td class="num">${number(sum.tokens)}</td><td class="num">${money(sum.cost)}</td></tr>`)} /></${Card}>`}
    <${Card} bare title=${t("single_requests")}>
      ${attempts.error && html`<div class="body"><${Failure} error=${attempts.error} retry=${attempts.reread} /></div>`}
      ${attempts.value && html`<${Table} caption=${t("single_requests")} empty=${t("nothing_used")} head=${[[t("when")], [t("model")], [t("prompt"), "num"], [t("response"), "num"], [t("counted_by")], [t("cost"), "num"]]}
        rows=${attempts.value.usage.map((one) => html`<tr key=${one.attempt_id}><td class="dim">${at(one.at)}</td><td>${one.model}</td><td class="num">${number(one.tokens_in)}</td><td class="num">${number(one.tokens_out)}</td><td class="dim">${one.source}</td><td class="num">${money(one.cost)}</td></tr>`)} />
        ${(before.length > 0 || attempts.value.next) && html`<div class="body row">${before.length > 0 && html`<${Button} label=${t("newer")} onClick=${() => setBefore(before.slice(0, -1))} />`}
          ${attempts.value.next && html`<${Button} label=${t("older")} onClick=${() => setBefore([...before, attempts.value.next])} />`}</div>`}`}
    </${Card}>`;
}
