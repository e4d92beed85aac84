// The frame: navigation, who is signed in, whether the server answers, and the page that the address names.
import { effect, html, render, useEffect, useRef, useState } from "./lib.js";
import { hasSession, hasToken } from "./api.js";
import { loadWords, t } from "./i18n.js";
import { Bones, Button, Failure, Icon, Pill, said } from "./parts.js";
import { connection, follow, followHistory, me, path, readMe, signOut, theme, told, useTheme } from "./store.js";
import { Overview } from "./pages/overview.js";
import { Models } from "./pages/models.js";
import { Playground } from "./pages/playground.js";
import { Requests } from "./pages/requests.js";
import { Backends } from "./pages/backends.js";
import { Downloads } from "./pages/downloads.js";
import { SignIn } from "./pages/signin.js";

const PAGES = {
  "/": { id: "overview", page: Overview },
  "/models": { id: "models", page: Models },
  "/playground": { id: "playground", page: Playground },
  "/requests": { id: "requests", page: Requests },
  "/backends": { id: "backends", page: Backends, isOperators: true },
  "/downloads": { id: "downloads", page: Downloads, isOperators: true },
};
const ACCOUNT = () => import("./pages/account.js");
const ACCOUNT_PAGES = {
  "/keys": { id: "keys", load: async () => (await ACCOUNT()).Keys },
  "/usage": { id: "usage", load: async () => (await ACCOUNT()).Usage },
};
const OPERATOR_ACCOUNT_PAGES = {
  "/users": { id: "users", load: async () => (await import("./pages/users.js")).Users, isOperators: true },
};
const KEYS = { o: "/", m: "/models", p: "/playground", r: "/requests", b: "/backends", d: "/downloads" };

/** The pages that there are for this caller, by path. */
function pagesOf() {
  const { role, accounts } = me.value ?? {};
  if (!accounts || role === "none") return PAGES;
  return { ...PAGES, ...(hasSession() ? ACCOUNT_PAGES : {}), ...(role === "operator" ? OPERATOR_ACCOUNT_PAGES : {}) };
}

/** A page whose module is loaded when it is opened first. */
function Loaded({ load }) {
  const [page, setPage] = useState(null);
  const [error, setError] = useState(null);
  useEffect(() => void load().then((found) => setPage(() => found), setError), [load]);
  if (error) return html`<${Failure} error=${error} />`;
  return page ? html`<${page} />` : html`<${Bones} lines=${5} />`;
}

function Side() {
  const names = Object.keys(told.value.models?.table ?? {});
  const entry = ([to, { id }]) => html`<a href=${`#${to}`} aria-current=${path.value === to ? "page" : undefined}><${Icon} name=${id} />${t(id)}
    ${id === "models" && names.length > 0 && html`<span class="count">${names.length}</span>`}</a>`;
  const all = Object.entries(pagesOf());
  const own = all.filter(([, one]) => one.load && !one.isOperators);
  return html`<nav class="side" aria-label=${t("pages")}>
    <div class="brand"><img src="icon.svg" alt="" />${t("appliance")}</div>
    ${all.filter(([, one]) => !one.isOperators && !one.load).map(entry)}
    ${own.length > 0 && html`<div class="group">${t("account")}</div>${own.map(entry)}`}
    <div class="group">${t("operate")}</div>
    ${all.filter(([, one]) => one.isOperators).map(entry)}
    <div class="foot">
      ${connection.value === "live" ? html`<${Pill} kind="good">${t("live")}</${Pill}>` : html`<${Pill} kind="warn" busy>${t("connecting")}</${Pill}>`}
      <span>${me.value?.version} · ${t(`role_${me.value?.role}`)}</span>
    </div>
  </nav>`;
}

function App() {
  const heading = useRef(null);
  const known = pagesOf()[path.value] ?? PAGES["/"];
  useEffect(() => {
    document.title = `${t(known.id)} – ${t("appliance")}`;
    heading.current?.focus({ preventScroll: true });
  }, [known.id]);
  if (!me.value) return null;
  const { role, needs } = me.value;
  if (role === "none" || path.value === "/signin") return html`<${SignIn} />`;
  const nextTheme = theme.value === "dark" ? "light" : theme.value === "light" ? "" : "dark";
  return html`<a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); heading.current?.focus(); }}>${t("to_content")}</a>
    <div class="frame"><${Side} />
    <main class="main" id="main">
      <div class="head"><h1 ref=${heading} tabindex="-1">${t(known.id)}</h1><div class="aside">
        ${(needs === "key" || needs === "login") && !hasToken() && html`<a class="button" href="#/signin">${t("sign_in")}</a>`}
        ${hasToken() && html`<${Button} icon="out" label=${t("sign_out")} onClick=${signOut} />`}
        <${Button} icon="moon" iconOnly kind="ghost" label=${t("theme", { now: theme.value || t("system") })} onClick=${() => useTheme(nextTheme)} /></div></div>
      ${connection.value === "lost" && html`<div class="banner" role="status">${t("lost")}</div>`}
      ${needs === "operator_key" && known.isOperators && html`<div class="banner">${t("operator_key_says")}</div>`}
      ${known.load ? html`<${Loaded} key=${known.id} load=${known.load} />` : html`<${known.page} />`}
    </main></div>
    <div class="visually-hidden" role="status" aria-live="polite">${said}</div>`;
}

let last = 0;
addEventListener("keydown", (event) => {
  const inField = event.target instanceof Element && event.target.closest("input, textarea, select, dialog");
  if (inField || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "g") last = Date.now();
  else if (KEYS[event.key] && Date.now() - last < 1500) location.hash = `#${KEYS[event.key]}`;
});

useTheme(theme.value);
await loadWords();
await readMe().catch(() => {});
const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);
effect(() => document.documentElement.setAttribute("data-connection", connection.value));
follow();
followHistory();
