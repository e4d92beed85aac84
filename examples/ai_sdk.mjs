// The AI SDK (`ai` 5) in Node.js 18 or newer: a stream, an agent with a tool, an object that fits a schema, embeddings.
//
// npm install ai@5 @ai-sdk/openai@2 zod

import { createOpenAI } from "@ai-sdk/openai";
import { embedMany, generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const { BASE_URL = "http://127.0.0.1:14000", API_KEY = "any", MODEL = "demo" } = process.env;
const { EMBEDDING_MODEL = MODEL } = process.env;
const QUESTION = "How warm is it in Paris?";

const openai = createOpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: API_KEY });
const model = openai(MODEL); // the Responses API; openai.chat(MODEL) asks for chat completions

process.stdout.write("stream: ");
for await (const text of streamText({ model, prompt: "Hello" }).textStream) process.stdout.write(text);
console.log();

const weather = tool({
  description: "Say how warm it is in a city.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `20 degrees in ${city}`,
});
const done = await generateText({ model, prompt: QUESTION, tools: { weather }, stopWhen: stepCountIs(5) });
console.log("tool:", done.text);

const schema = z.object({ name: z.string() });
const { object } = await generateObject({ model, schema, prompt: "Which colour has grass?" });
console.log("object:", JSON.stringify(object));

const values = ["a cat", "a kitten"];
const { embeddings } = await embedMany({ model: openai.textEmbedding(EMBEDDING_MODEL), values });
console.log("embeddings:", embeddings[0].length, "and", embeddings[1].length, "numbers");
