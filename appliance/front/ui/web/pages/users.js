// For operators: users, their credits, and the money of all. Loaded when the page is opened first.
import { call } from "../api.js";
import { html, useEffect, useState } from "../lib.js";
import { money, number, t } from "../i18n.js";
import { Bones, Button, Card, Drawer, Failure, Pill, Table, Tile } from "../parts.js";

const BASE = "api/v1/admin";

function User({ user, onClose, onChange }) {
  const [credits, setCredits] = useState(null);
  const [amount, setAmount] = useState("");
  const [note, setNote] = useState("");
  const [error, setError] = useState(null);
  const [id] = useState(() => crypto.randomUUID());
  const [done, setDone] = useState(null);
  useEffect(() => void call(`${BASE}/users/${encodeURIComponent(user.id)}`).then((found) => setCredits(found.credits ?? null), setError), []);
  const grant = async (event) => {
    event.preventDefault();
    try {
      const made = await call(`${BASE}/users/${encodeURIComponent(user.id)}/grant`, { method: "POST", json: { amount: Number(amount), note }, headers: { "idempotency-key": id } });
      setCredits(made.credits);
      setDone(t("granted", { amount: money(made.amount) }));
      setError(null);
      onChange();
    } catch (failed) {
      setError(failed);
    }
  };
  const setActive = () => call(`${BASE}/users/${encodeURIComponent(user.id)}`, { method: "PATCH", json: { is_active: !user.is_active } }).then(() => { onChange(); onClose(); });
  return html`<${Drawer} title=${user.email} onClose=${onClose}>
    <dl class="pairs"><dt>${t("name")}</dt><dd>${user.name}</dd><dt>${t("user_id")}</dt><dd class="mono">${user.id}</dd>
      ${credits && html`<dt>${t("credits_left")}</dt><dd>${money(credits.credits_remaining)} ${t("of_total", { total: money(credits.credits_total) })}</dd><dt>${t("credits_held")}</dt><dd>${money(credits.credits_held)}</dd>`}</dl>
    <form class="stack" onSubmit=${grant}><label class="field">${t("grant_amount")}<input required type="number" min="0.01" max="1000000" step="0.01" value=${amount} onInput=${(event) => setAmount(event.target.value)} /></label>
      <label class="field">${t("grant_note")}<input maxlength="200" value=${note} onInput=${(event) => setNote(event.target.value)} /></label>
      <div class="row"><${Button} type="submit" kind="main-action" label=${t("grant")} disabled=${done !== null} /><span class="dim" role="status">${done}</span></div></form>
    <div><${Button} label=${user.is_active ? t("lock_user") : t("unlock_user")} onClick=${setActive} onError=${setError} /></div>
    <${Failure} error=${error} />
  </${Drawer}>`;
}

/** The page. */
export function Users() {
  const [users, setUsers] = useState(null);
  const [sums, setSums] = useState(null);
  const [words, setWords] = useState("");
  const [open, setOpen] = useState(null);
  const [error, setError] = useState(null);
  const read = () => Promise.all([call(`${BASE}/users?limit=200`), call(`${BASE}/money`)]).then(([found, all]) => { setUsers(found.users); setSums(all); setError(null); }, setError);
  useEffect(() => void read(), []);
  if (error && !users) return html`<${Card}><${Failure} error=${error} retry=${read} /></${Card}>`;
  if (!users) return html`<${Card}><${Bones} lines=${5} /></${Card}>`;
  const shown = users.filter((one) => `${one.email} ${one.name} ${one.id}`.toLowerCase().includes(words.toLowerCase()));
  return html`<div class="tiles">
      <${Tile} label=${t("users")} value=${number(sums.wallets.count)} /><${Tile} label=${t("credits_left")} value=${money(sums.wallets.remaining)} />
      <${Tile} label=${t("charged")} value=${money(sums.usage.cost)} /><${Tile} label=${t("owed")} value=${money(sums.wallets.owed)} /></div>
    <${Card} bare title=${t("users")} aside=${html`<input type="search" aria-label=${t("find_user")} placeholder=${t("find_user")} value=${words} onInput=${(event) => setWords(event.target.value)} />`}>
      <${Table} caption=${t("users")} empty=${t("no_users")} head=${[[t("email")], [t("name")], [t("state")], [t("role")]]}
        rows=${shown.map((one) => html`<tr key=${one.id}><td><button type="button" class="link" onClick=${() => setOpen(one)}>${one.email}</button></td><td>${one.name}</td>
          <td>${one.is_active ? html`<${Pill} kind="good">${t("active")}</${Pill}>` : html`<${Pill} kind="bad">${t("locked")}</${Pill}>`}</td><td>${one.is_admin ? t("admin") : t("user")}</td></tr>`)} /></${Card}>
    ${open && html`<${User} user=${open} onClose=${() => setOpen(null)} onChange=${read} />`}`;
}
