// Calls of the appliance's own addresses. They are relative, so that the UI works below any path of a proxy.

const ROOT = new URL("..", document.baseURI);
const KEPT = "appliance-token";

let token = sessionStorage.getItem(KEPT) ?? "";
let refresh = sessionStorage.getItem(`${KEPT}-refresh`) ?? "";

/** A failure as the server told it. */
export class ApiError extends Error {
  /** @param {number} status @param {string} message @param {string} code @param {string} id */
  constructor(status, message, code = "", id = "") {
    super(message);
    this.status = status;
    this.code = code;
    this.id = id;
  }
}

/** Keep a token for this tab; "" forgets it. @param {string} value @param {string} [renewal] */
export function keepToken(value, renewal = "") {
  token = value;
  refresh = renewal;
  for (const [name, kept] of [[KEPT, value], [`${KEPT}-refresh`, renewal]])
    kept ? sessionStorage.setItem(name, kept) : sessionStorage.removeItem(name);
}

export const hasToken = () => token !== "";

/** Whether a user has signed in, not a key. */
export const hasSession = () => refresh !== "";

/** Return the full address of a path. @param {string} path */
export const addressOf = (path) => new URL(path, ROOT).href;

/** Ask for a response. @param {string} path @param {RequestInit & {json?: unknown}} [options] */
async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  if (token) headers.set("authorization", `Bearer ${token}`);
  if (options.json !== undefined) headers.set("content-type", "application/json");
  const body = options.json !== undefined ? JSON.stringify(options.json) : options.body;
  return fetch(new URL(path, ROOT), { ...options, headers, body, cache: "no-store", credentials: "omit", redirect: "error" });
}

/** Return the response of a call. @param {string} path @param {RequestInit & {json?: unknown}} [options] */
export async function request(path, options = {}) {
  let answer = await ask(path, options);
  if (answer.status === 401 && refresh && (await renew())) answer = await ask(path, options);
  if (!answer.ok) throw await failure(answer);
  return answer;
}

/** Return the JSON of a call. @param {string} path @param {RequestInit & {json?: unknown}} [options] */
export const call = async (path, options = {}) => (await request(path, options)).json();

/** Exchange the refresh token; one page does it at a time. */
async function renew() {
  return navigator.locks.request("appliance-refresh", async () => {
    const answer = await fetch(new URL("api/v1/auth/refresh", ROOT), {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ refresh_token: refresh }),
      credentials: "omit",
    });
    if (!answer.ok) {
      keepToken("");
      return false;
    }
    const { tokens } = await answer.json();
    keepToken(tokens.access_token, tokens.refresh_token);
    return true;
  });
}

/** Read an error in any dialect. @param {Response} answer */
async function failure(answer) {
  const id = answer.headers.get("x-request-id") ?? "";
  const text = await answer.text();
  try {
    const value = JSON.parse(text);
    const error = value.error ?? value.detail ?? value;
    const message = typeof error === "string" ? error : error.message;
    return new ApiError(answer.status, message || text.slice(0, 400), error.code ?? value.code ?? "", id);
  } catch {
    return new ApiError(answer.status, text.slice(0, 400) || answer.statusText, "", id);
  }
}

/**
 * Read server-sent events.
 * @param {Response} answer
 * @returns {AsyncGenerator<{name: string, data: string}>}
 */
export async function* eventsOf(answer) {
  for await (const block of blocksOf(answer, /\r?\n\r?\n/)) {
    let name = "message";
    const data = [];
    for (const line of block.split(/\r?\n/)) {
      if (line.startsWith("event:")) name = line.slice(6).trim();
      else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
    }
    if (data.length) yield { name, data: data.join("\n") };
  }
}

/** Read text piece by piece. @param {Response} answer @param {RegExp} between @returns {AsyncGenerator<string>} */
export async function* blocksOf(answer, between) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const parts = (rest + value).split(between);
      rest = parts.pop() ?? "";
      yield* parts;
    }
    if (rest.trim()) yield rest;
  } finally {
    await reader.cancel().catch(() => {});
  }
}
