// The AI SDK as it comes, over the Responses API. Prints what it got as one line of JSON.
// Arguments: the base URL; a JSON object {model, hello, tool, object, toolChoice}: the prompts, and how the tool is chosen.
import { createOpenAI } from "@ai-sdk/openai";
import { generateObject, generateText, jsonSchema, stepCountIs, streamObject, streamText, tool } from "ai";

const [baseURL, given] = process.argv.slice(2);
const asked = { model: "m", hello: "Hello", toolChoice: "auto", ...JSON.parse(given) };
const bodies = [];
const openai = createOpenAI({
  baseURL,
  apiKey: "client-key-123456",
  fetch: (url, init) => {
    bodies.push(JSON.parse(init.body));
    return fetch(url, init);
  },
});
const model = openai(asked.model);
const settings = { model, maxRetries: 0 };
const weather = tool({
  inputSchema: jsonSchema({ type: "object", properties: { city: { type: "string" } }, required: ["city"] }),
  execute: async () => "20 degrees",
});
const schema = jsonSchema({
  type: "object",
  properties: { colour: { enum: ["red", "green"] } },
  required: ["colour"],
  additionalProperties: false,
});
const agent = { ...settings, tools: { weather }, toolChoice: asked.toolChoice, prompt: asked.tool, stopWhen: stepCountIs(2) };

const stepsOf = (steps) =>
  steps.map((step) => ({
    calls: step.toolCalls.map((call) => call.toolName),
    cities: step.toolCalls.map((call) => typeof call.input.city),
    results: step.toolResults.map((result) => result.output),
    text: step.text,
    reason: step.finishReason,
  }));

async function failure(work) {
  try {
    await work();
    return null;
  } catch (error) {
    return { name: error.name, status: error.statusCode, retryable: error.isRetryable, message: error.message };
  }
}

async function streamed(request) {
  let text = "";
  let error = null;
  const stream = streamText({ ...request, onError: () => {} });
  for await (const part of stream.fullStream) {
    if (part.type === "text-delta") text += part.text;
    if (part.type === "error") error = part.error.error?.message ?? part.error.message;
  }
  return { text, error, stream };
}

const got = {};
const first = await generateText({ ...settings, prompt: asked.hello });
got.text = { text: first.text, reason: first.finishReason, tokens: first.usage.outputTokens, model: first.response.modelId };
const stream = await streamed({ ...settings, prompt: asked.hello });
got.stream = { text: stream.text, reason: await stream.stream.finishReason, tokens: (await stream.stream.usage).outputTokens };
got.steps = stepsOf((await generateText(agent)).steps);
got.streamedSteps = stepsOf(await (await streamed(agent)).stream.steps);
got.object = (await generateObject({ ...settings, schema, prompt: asked.object })).object;
const objects = streamObject({ ...settings, schema, prompt: asked.object });
for await (const object of objects.partialObjectStream) got.streamedObject = object;
const before = bodies.length;
const second = await generateText({
  ...settings,
  messages: [{ role: "user", content: asked.hello }, ...first.response.messages, { role: "user", content: "And now?" }],
});
const continued = await generateText({
  ...settings,
  prompt: "More",
  providerOptions: { openai: { previousResponseId: first.providerMetadata.openai.responseId } },
});
got.references = bodies.slice(before).flatMap((body) => body.input).filter((item) => item.type === "item_reference").length;
got.further = [second.text, continued.text];
got.chat = (await generateText({ ...settings, model: openai.chat(asked.model), prompt: asked.hello })).text;
got.unknown = await failure(() =>
  generateText({ ...settings, prompt: "x", providerOptions: { openai: { previousResponseId: "resp_unknown" } } }),
);
got.failures = {};
for (const prompt of asked.failing ?? []) {
  got.failures[prompt] = [
    await failure(() => generateText({ ...settings, prompt })),
    (await streamed({ ...settings, prompt })).error,
  ];
}
console.log(JSON.stringify(got));
