// The `openai` package for Node.js 18 or newer: models, a stream, a tool call, embeddings, a kept conversation.
//
// npm install openai

import OpenAI from "openai";

const { BASE_URL = "http://127.0.0.1:14000", API_KEY = "any", MODEL = "demo" } = process.env;
const { EMBEDDING_MODEL = MODEL } = process.env;
const QUESTION = "How warm is it in Paris?";

const client = new OpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: API_KEY });
const model = MODEL;
const listed = await client.models.list();
console.log("models:", ...listed.data.map((one) => one.id));

process.stdout.write("stream: ");
const stream = client.chat.completions.stream({ model, messages: [{ role: "user", content: "Hello" }] });
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta.content ?? "");
console.log();

const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const weather = {
  name: "weather",
  description: "Say how warm it is in a city.",
  parameters,
  parse: JSON.parse,
  function: ({ city }) => `20 degrees in ${city}`,
};
const messages = [{ role: "user", content: QUESTION }];
const tools = [{ type: "function", function: weather }];
const runner = client.chat.completions.runTools({ model, messages, tools }); // asks again with each result, until there is a text
console.log("tool:", await runner.finalContent());

const { data } = await client.embeddings.create({ model: EMBEDDING_MODEL, input: ["a cat", "a kitten"] });
console.log("embeddings:", data[0].embedding.length, "and", data[1].embedding.length, "numbers");

const response = await client.responses.create({ model, input: "Hello" });
const more = await client.responses.create({ model, input: "And now?", previous_response_id: response.id });
console.log("responses:", response.output_text, "/", more.output_text);
