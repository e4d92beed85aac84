// Sign in by a key, or, where there are accounts, by e-mail and password.
import { call, keepToken } from "../api.js";
import { html, useState } from "../lib.js";
import { t } from "../i18n.js";
import { Button, Card, Failure } from "../parts.js";
import { me, readMe } from "../store.js";

/** The page. */
export function SignIn() {
  const [error, setError] = useState(null);
  const hasAccounts = me.value?.accounts;
  async function signIn(event) {
    event.preventDefault();
    const given = Object.fromEntries(new FormData(event.target));
    try {
      if (hasAccounts) {
        const { tokens } = await call("api/v1/auth/login", { method: "POST", json: given });
        keepToken(tokens.access_token, tokens.refresh_token);
      } else {
        const { token } = await call("ui/api/session", { method: "POST", json: given });
        keepToken(token);
      }
      await readMe();
      setError(null);
      dispatchEvent(new Event("signed-in"));
      location.hash = "#/";
    } catch (failed) {
      setError(failed);
    }
  }
  return html`<div class="signin"><${Card} title=${t("sign_in")}><form class="stack" onSubmit=${signIn}>
    ${hasAccounts
      ? html`<label class="field">${t("email")}<input name="email" type="email" autocomplete="username" required autofocus /></label>
          <label class="field">${t("password")}<input name="password" type="password" autocomplete="current-password" required /></label>`
      : html`<label class="field">${t("api_key")}<input name="key" type="password" autocomplete="off" required autofocus /></label><p class="dim">${t("key_says")}</p>`}
    <${Failure} error=${error} />
    <div><${Button} type="submit" kind="main-action" label=${t("sign_in")} /></div>
  </form></${Card}></div>`;
}
