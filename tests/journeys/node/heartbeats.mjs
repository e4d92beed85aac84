// Texts of two streams, as the official client for JavaScript reads them: node heartbeats.mjs BASE_URL OPTIONS
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "x", maxRetries: 0 });

async function chat() {
  let text = "";
  const stream = await client.chat.completions.create({
    model: "tiny",
    messages: [{ role: "user", content: "hello" }],
    stream: true,
  });
  for await (const chunk of stream) text += chunk.choices[0].delta.content ?? "";
  return text;
}

async function responses() {
  let text = "";
  const stream = await client.responses.create({ model: "tiny", input: "hello", stream: true });
  for await (const event of stream) if (event.type === "response.output_text.delta") text += event.delta;
  return text;
}

const [chatText, responsesText] = await Promise.all([chat(), responses()]);
console.log(JSON.stringify({ chat: chatText, responses: responsesText }));
