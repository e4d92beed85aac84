// Chat with a model, see how fast it answers and why it was answered there, and copy the same request as code.
import { addressOf, call, eventsOf, request } from "../api.js";
import { html, signal, useEffect, useRef, useState } from "../lib.js";
import { number, span, t } from "../i18n.js";
import { Button, Card, CopyLine, Failure, Segment, StatePill } from "../parts.js";
import { Markdown } from "../markdown.js";
import { me, told } from "../store.js";
import { Receipt } from "./requests.js";

const talk = signal([]); // {role, text, thought?, facts?, error?}; it stays while other pages are looked at
const settings = signal({ model: "", system: "", temperature: 0.7, max_tokens: 512 });
const running = signal(null); // an AbortController

const put = (values) => (settings.value = { ...settings.value, ...values });
const change = (last) => (talk.value = [...talk.value.slice(0, -1), { ...talk.value.at(-1), ...last }]);

/** The body of the request. @param {any[]} messages */
function bodyOf(messages) {
  const { model, system, temperature, max_tokens } = settings.value;
  const first = system.trim() ? [{ role: "system", content: system }] : [];
  return { model, messages: [...first, ...messages], temperature, max_tokens, stream: true, stream_options: { include_usage: true } };
}

async function send(text) {
  const messages = [...talk.value.filter((one) => !one.error && one.text).map(({ role, text: content }) => ({ role, content })), { role: "user", content: text }];
  talk.value = [...talk.value, { role: "user", text }, { role: "assistant", text: "", thought: "" }];
  const stop = (running.value = new AbortController());
  const began = performance.now();
  let first_ms = null, usage = null, id = "";
  const noteFacts = () => {
    const whole_s = (performance.now() - began - (first_ms ?? 0)) / 1000;
    const tokens = usage?.completion_tokens ?? null;
    change({ facts: { id, first_ms, tokens, rate: tokens && tokens > 1 && whole_s > 0 ? tokens / whole_s : null } });
  };
  try {
    const answer = await request("v1/chat/completions", { method: "POST", json: bodyOf(messages), signal: stop.signal });
    id = answer.headers.get("x-request-id") ?? "";
    for await (const { data } of eventsOf(answer)) {
      if (data === "[DONE]") break;
      const value = JSON.parse(data);
      if (value.error) throw new Error(value.error.message ?? String(value.error));
      usage = value.usage ?? usage;
      const delta = value.choices?.[0]?.delta ?? {};
      const thought = delta.reasoning_content ?? delta.reasoning ?? "";
      if (first_ms === null && (delta.content || thought)) first_ms = performance.now() - began;
      const last = talk.value.at(-1);
      if (delta.content || thought) change({ text: last.text + (delta.content ?? ""), thought: last.thought + thought });
    }
  } catch (error) {
    change(stop.signal.aborted ? { stopped: true } : { error });
  } finally {
    running.value = null;
    noteFacts();
  }
}

function Facts({ facts, stopped }) {
  const [receipt, setReceipt] = useState(null);
  const [error, setError] = useState(null);
  const why = () => call(`receipts/${encodeURIComponent(facts.id)}`).then(setReceipt, setError);
  return html`<div class="facts">
    ${stopped && html`<span>${t("stopped")}</span>`}
    ${facts.first_ms != null && html`<span>${t("first_word")} <b>${span(facts.first_ms)}</b></span>`}
    ${facts.tokens != null && html`<span><b>${number(facts.tokens)}</b> ${t("tokens_word")}</span>`}
    ${facts.rate != null && html`<span><b>${number(facts.rate)}</b> ${t("per_s")}</span>`}
    ${facts.id && me.value?.role === "operator" && html`<button type="button" class="link" onClick=${why}>${t("why_there_short")}</button>`}
    ${error && html`<span>${error.message}</span>`}
    ${receipt && html`<${Receipt} receipt=${receipt} onClose=${() => setReceipt(null)} />`}
  </div>`;
}

/** The same request for other programs. */
function codes() {
  const base = addressOf("v1");
  const { model, temperature, max_tokens } = settings.value;
  const messages = [...(settings.value.system.trim() ? [{ role: "system", content: settings.value.system }] : []), { role: "user", content: "Hello" }];
  const body = JSON.stringify({ model, messages, temperature, max_tokens });
  const needsKey = me.value?.needs === "key" || me.value?.accounts;
  return [
    ["curl", `curl ${base}/chat/completions -H 'content-type: application/json' \\\n${needsKey ? "  -H \"authorization: Bearer $KEY\" \\\n" : ""}  -d '${body.replaceAll("'", "'\\''")}'`],
    ["Python", `from openai import OpenAI\n\nclient = OpenAI(base_url=${JSON.stringify(base)}, api_key=${needsKey ? "KEY" : '"none"'})\nanswer = client.chat.completions.create(\n    model=${JSON.stringify(model)},\n    messages=${JSON.stringify(messages)},\n    temperature=${temperature},\n    max_tokens=${max_tokens},\n)\nprint(answer.choices[0].message.content)`],
    ["JavaScript", `import OpenAI from "openai";\n\nconst client = new OpenAI({ baseURL: ${JSON.stringify(base)}, apiKey: ${needsKey ? "process.env.KEY" : '"none"'} });\nconst answer = await client.chat.completions.create(${body});\nconsole.log(answer.choices[0].message.content);`],
  ];
}

/** The page. */
export function Playground() {
  const [text, setText] = useState("");
  const [tab, setTab] = useState("chat");
  const end = useRef(null);
  const models = told.value.models;
  const names = (models?.cards ?? []).map((one) => one.id);
  useEffect(() => { if (names.length && !names.includes(settings.value.model)) put({ model: names[0] }); }, [names.join()]);
  useEffect(() => end.current?.scrollIntoView({ block: "nearest" }), [talk.value]);
  const { model, system, temperature, max_tokens } = settings.value;
  const state = models?.table[model];
  const submit = (event) => {
    event?.preventDefault();
    if (!text.trim() || running.value) return;
    send(text.trim());
    setText("");
  };
  const onKey = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
  };
  return html`<div class="playground">
    <section class="card chat" aria-label=${t("conversation")}>
      <div class="talk" tabindex="0">
        ${talk.value.length === 0 && html`<div class="empty"><div>${t("say_something")}</div>
          <div class="row">${["starter_1", "starter_2", "starter_3"].map((id) => html`<${Button} label=${t(id)} onClick=${() => void send(t(id))} />`)}</div></div>`}
        ${talk.value.map((one, at) => one.role === "user" ? html`<div class="said">${one.text}</div>` : html`<div class="reply">
          ${one.thought && html`<div class="thought">${one.thought}</div>`}
          ${one.text ? html`<${Markdown} text=${one.text} />` : !one.error && !one.stopped && running.value && at === talk.value.length - 1 ? html`<div class="bones"></div>` : null}
          <${Failure} error=${one.error} />
          ${one.facts && html`<${Facts} facts=${one.facts} stopped=${one.stopped} />`}</div>`)}
        <div ref=${end}></div>
      </div>
      <form class="composer" onSubmit=${submit}>
        <textarea rows="1" aria-label=${t("message")} placeholder=${t("message_to", { model })} value=${text} onInput=${(event) => setText(event.target.value)} onKeyDown=${onKey}></textarea>
        ${running.value
          ? html`<${Button} icon="stop" iconOnly label=${t("stop")} onClick=${() => running.value?.abort()} />`
          : html`<${Button} type="submit" icon="send" iconOnly kind="main-action" label=${t("send")} disabled=${!text.trim()} />`}
      </form>
    </section>
    <${Card} title=${t("request")} aside=${html`<${Segment} label=${t("request")} value=${tab} onChange=${setTab} options=${[["chat", t("chat")], ["code", t("code")]]} />`}>
      ${tab === "code" ? html`<div class="stack">${codes().map(([name, code]) => html`<div><h3>${name}</h3><${CopyLine} text=${code} /></div>`)}</div>` : html`<div class="stack">
        <label class="field">${t("model")}<select value=${model} onChange=${(event) => put({ model: event.target.value })}>${names.map((name) => html`<option value=${name} selected=${name === model}>${name}</option>`)}</select></label>
        ${state && html`<div><${StatePill} status=${state.status} /></div>`}
        <label class="field">${t("system_prompt")}<textarea rows="3" placeholder=${t("none")} value=${system} onInput=${(event) => put({ system: event.target.value })}></textarea></label>
        <label class="field"><span class="row"><span class="grow">${t("temperature")}</span><b>${temperature}</b></span><input type="range" min="0" max="2" step="0.1" value=${temperature} onInput=${(event) => put({ temperature: Number(event.target.value) })} /></label>
        <label class="field"><span class="row"><span class="grow">${t("longest")}</span><b>${max_tokens}</b></span><input type="range" min="16" max="4096" step="16" value=${max_tokens} onInput=${(event) => put({ max_tokens: Number(event.target.value) })} /></label>
        <${Button} label=${t("clear")} onClick=${() => { running.value?.abort(); talk.value = []; }} /></div>`}
    </${Card}>
  </div>`;
}
