// The AI SDK's default over the Responses API; prints what it got as one line of JSON. Argument: the base URL.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

const inputs = [];
const model = createOpenAI({
  baseURL: process.argv[2],
  apiKey: "client-key-123456",
  fetch: (url, init) => {
    inputs.push(JSON.parse(init.body).input);
    return fetch(url, init);
  },
})("m");
const weather = tool({
  inputSchema: jsonSchema({ type: "object", properties: { city: { type: "string" } }, required: ["city"] }),
  execute: async () => "20 degrees",
});
const asked = { model, tools: { weather }, prompt: "demo: tool weather", stopWhen: stepCountIs(3) };

const first = await generateText({ model, prompt: "Hello" });
const steps = (await generateText(asked)).steps;
const stream = streamText(asked);
let streamed = "";
for await (const text of stream.textStream) streamed += text;
const second = await generateText({
  model,
  messages: [{ role: "user", content: "Hello" }, ...first.response.messages, { role: "user", content: "And now?" }],
});
const continued = await generateText({
  model,
  prompt: "More",
  providerOptions: { openai: { previousResponseId: first.providerMetadata.openai.responseId } },
});
console.log(
  JSON.stringify({
    texts: [first.text, steps.at(-1).text, streamed, second.text, continued.text],
    calls: steps[0].toolCalls.map((call) => call.toolName),
    references: inputs.flat().filter((item) => item.type === "item_reference").length,
  }),
);
