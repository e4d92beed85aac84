"""The `openai` package for Python: models, a stream, a tool call, embeddings, a kept conversation.

pip install openai
"""

import json
import os

from openai import OpenAI

URL = os.environ.get("BASE_URL", "http://127.0.0.1:14000")
MODEL = os.environ.get("MODEL", "demo")
EMBEDDING_MODEL = os.environ.get("EMBEDDING_MODEL", MODEL)
QUESTION = "How warm is it in Paris?"

client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("API_KEY", "any"))
print("models:", *(model.id for model in client.models.list()))

print("stream:", end=" ")
hello = [{"role": "user", "content": "Hello"}]
for chunk in client.chat.completions.create(model=MODEL, messages=hello, stream=True):
    print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
print()

parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
weather = {"name": "weather", "description": "Say how warm it is in a city.", "parameters": parameters}
tools = [{"type": "function", "function": weather}]
messages = [{"role": "user", "content": QUESTION}]
message = client.chat.completions.create(model=MODEL, messages=messages, tools=tools).choices[0].message
if message.tool_calls:
    messages.append(message)
    for call in message.tool_calls:
        result = f"20 degrees in {json.loads(call.function.arguments)['city']}"
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    message = client.chat.completions.create(model=MODEL, messages=messages, tools=tools).choices[0].message
print("tool:", message.content)

first, second = client.embeddings.create(model=EMBEDDING_MODEL, input=["a cat", "a kitten"]).data
print("embeddings:", len(first.embedding), "and", len(second.embedding), "numbers")

response = client.responses.create(model=MODEL, input="Hello")
more = client.responses.create(model=MODEL, input="And now?", previous_response_id=response.id)
print("responses:", response.output_text, "/", more.output_text)
