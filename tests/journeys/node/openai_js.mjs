// The official openai client for JavaScript: chat, streams, responses. Prints what it got as one line of JSON.
// Arguments: the base URL; a JSON object {model, hello, tool, object, toolChoice}: the prompts, and how the tool is chosen.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [baseURL, given] = process.argv.slice(2);
const asked = { model: "m", hello: "Hello", toolChoice: "auto", ...JSON.parse(given) };
const client = new OpenAI({ baseURL, apiKey: "client-key-123456", maxRetries: 0 });
const { model } = asked;
const messages = [{ role: "user", content: asked.hello }];
const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
const Answer = z.object({ colour: z.enum(["red", "green"]) });

async function failure(work) {
  try {
    await work();
    return null;
  } catch (error) {
    return { name: error.constructor.name, status: error.status ?? null, code: error.code ?? null, message: error.message };
  }
}

const got = {};
const { data: whole, response } = await client.chat.completions.create({ model, messages }).withResponse();
got.chat = { text: whole.choices[0].message.content, model: whole.model, id: response.headers.get("x-request-id") };
const chatStream = client.chat.completions.stream({ model, messages, stream_options: { include_usage: true } });
let pieces = 0;
for await (const _ of chatStream) pieces += 1;
const streamed = await chatStream.finalChatCompletion();
got.chatStream = { text: streamed.choices[0].message.content, pieces, tokens: streamed.usage.completion_tokens };

const runner = client.chat.completions.runTools(
  {
    model,
    messages: [{ role: "user", content: asked.tool }],
    tool_choice: asked.toolChoice,
    tools: [
      { type: "function", function: { name: "weather", parameters, parse: JSON.parse, function: async () => "20 degrees" } },
    ],
  },
  { maxChatCompletions: 2 },
);
await runner.done().catch(() => {});
got.toolMessages = runner.messages.map((message) => message.role);

const parsed = await client.chat.completions.parse({
  model,
  messages: [{ role: "user", content: asked.object }],
  response_format: zodResponseFormat(Answer, "answer"),
});
got.chatObject = parsed.choices[0].message.parsed;

const made = await client.responses.create({ model, input: asked.hello });
got.responses = { text: made.output_text, status: made.status };
const events = [];
const responseStream = client.responses.stream({ model, input: asked.hello });
for await (const event of responseStream) events.push(event.type);
const final = await responseStream.finalResponse();
got.responseStream = { text: final.output.at(-1).content[0].text, first: events[0], last: events.at(-1) };

const tools = [{ type: "function", name: "weather", strict: true, parameters }];
const called = await client.responses.create({ model, input: asked.tool, tools, tool_choice: asked.toolChoice });
const call = called.output.find((item) => item.type === "function_call");
const answered = await client.responses.create({
  model,
  tools,
  tool_choice: "none",
  previous_response_id: called.id,
  input: [{ type: "function_call_output", call_id: call.call_id, output: "20 degrees" }],
});
got.responseTool = { name: call.name, city: typeof JSON.parse(call.arguments).city, text: answered.output_text };
const object = await client.responses.parse({ model, input: asked.object, text: { format: zodTextFormat(Answer, "answer") } });
got.responseObject = object.output_parsed;
got.retrieved = (await client.responses.retrieve(made.id)).output_text;
got.models = (await client.models.list()).data.length;
got.unknown = await failure(() => client.responses.retrieve("resp_unknown"));
got.invalid = await failure(() => client.chat.completions.create({ model, messages: "no array" }));
got.failures = {};
for (const prompt of asked.failing ?? []) {
  const input = [{ role: "user", content: prompt }];
  got.failures[prompt] = [
    await failure(() => client.chat.completions.create({ model, messages: input })),
    await failure(() => client.chat.completions.stream({ model, messages: input }).finalChatCompletion()),
    await failure(async () => {
      const failing = await client.responses.create({ model, input, stream: true });
      for await (const event of failing) {
        if (event.type === "response.failed") throw Object.assign(new Error(), event.response.error);
      }
    }),
  ];
}
console.log(JSON.stringify(got));
