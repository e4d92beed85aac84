// What the server told last. Pages read these signals; one feed fills them.
import { call, eventsOf, hasToken, keepToken, request } from "./api.js";
import { signal } from "./lib.js";

export const me = signal(null); // {role, needs, accounts, parts?, version?}
export const connection = signal("connecting"); // connecting, live, lost
export const told = signal({}); // topic → its state
export const history = signal({ every_s: 10, samples: [], marks: [] });
export const path = signal(location.hash.slice(1) || "/");
export const theme = signal(localStorage.getItem("appliance-theme") ?? "");

const QUIET_MS = 45_000; // a heartbeat comes every 15 s
const HIDDEN_MS = 60_000;
const SIGNED_IN = "another caller has signed in";

addEventListener("hashchange", () => (path.value = location.hash.slice(1) || "/"));

/** Choose a theme. @param {string} value */
export function useTheme(value) {
  theme.value = value;
  value ? localStorage.setItem("appliance-theme", value) : localStorage.removeItem("appliance-theme");
  value ? document.documentElement.setAttribute("data-theme", value) : document.documentElement.removeAttribute("data-theme");
}

/** Ask who is signed in. */
export async function readMe() {
  me.value = await call("ui/api/me");
  return me.value;
}

/** Sign out of this tab. */
export async function signOut() {
  if (hasToken() && !me.value?.accounts) await call("ui/api/session", { method: "DELETE" }).catch(() => {});
  keepToken("");
  told.value = {};
  await readMe();
}

const pause = (ms) => new Promise((resume) => setTimeout(resume, ms));

/** Wait until the page is seen. */
async function seen() {
  while (document.hidden) await new Promise((resume) => document.addEventListener("visibilitychange", resume, { once: true }));
}

/** Follow the server, for as long as the page is open. */
export async function follow() {
  let wait_ms = 500;
  for (;;) {
    await seen();
    const stop = new AbortController();
    let quiet = setTimeout(() => stop.abort(), QUIET_MS);
    let hidden = 0;
    const onHide = () => {
      clearTimeout(hidden);
      if (document.hidden) hidden = setTimeout(() => stop.abort(), HIDDEN_MS);
    };
    const onLeave = () => stop.abort();
    const onSignIn = () => stop.abort(SIGNED_IN);
    document.addEventListener("visibilitychange", onHide);
    addEventListener("pagehide", onLeave);
    addEventListener("signed-in", onSignIn);
    try {
      const who = await readMe();
      if (who.role !== "none") {
        for await (const { name, data } of eventsOf(await request("ui/api/feed", { signal: stop.signal }))) {
          clearTimeout(quiet);
          quiet = setTimeout(() => stop.abort(), QUIET_MS);
          connection.value = "live";
          wait_ms = 500;
          if (name === "bye") break;
          if (name !== "heartbeat") told.value = { ...told.value, [name]: JSON.parse(data) };
        }
      } else {
        connection.value = "live";
        await new Promise((resume) => addEventListener("signed-in", resume, { once: true }));
        continue;
      }
    } catch {
      // told below
    } finally {
      clearTimeout(quiet);
      clearTimeout(hidden);
      document.removeEventListener("visibilitychange", onHide);
      removeEventListener("pagehide", onLeave);
      removeEventListener("signed-in", onSignIn);
    }
    if (stop.signal.reason === SIGNED_IN) continue;
    if (!document.hidden) connection.value = "lost";
    await pause(wait_ms * (0.8 + 0.4 * Math.random()));
    wait_ms = Math.min(wait_ms * 2, 10_000);
  }
}

/** Read the last hour now and then. */
export async function followHistory() {
  for (;;) {
    await seen();
    if (me.value && me.value.role !== "none") history.value = await call("ui/api/history").catch(() => history.value);
    await pause(history.value.samples.length ? 10_000 : 3000);
  }
}
