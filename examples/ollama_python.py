"""The `ollama` package for Python: models, a stream, a tool call, embeddings.

pip install ollama
"""

import os

from ollama import Client

URL = os.environ.get("BASE_URL", "http://127.0.0.1:14000")
KEY = os.environ.get("API_KEY", "any")
MODEL = os.environ.get("MODEL", "demo")
EMBEDDING_MODEL = os.environ.get("EMBEDDING_MODEL", MODEL)
QUESTION = "How warm is it in Paris?"


def weather(city: str) -> str:
    """Say how warm it is in a city.

    Args:
        city: Its name.
    """
    return f"20 degrees in {city}"


client = Client(host=URL, headers={"authorization": f"Bearer {KEY}"})
print("models:", *(model.model for model in client.list().models))

print("stream:", end=" ")
for part in client.chat(model=MODEL, messages=[{"role": "user", "content": "Hello"}], stream=True):
    print(part.message.content, end="", flush=True)
print()

messages = [{"role": "user", "content": QUESTION}]
message = client.chat(model=MODEL, messages=messages, tools=[weather]).message
if message.tool_calls:
    messages.append(message)
    for call in message.tool_calls:
        result = weather(**call.function.arguments)
        messages.append({"role": "tool", "tool_name": call.function.name, "content": result})
    message = client.chat(model=MODEL, messages=messages, tools=[weather]).message
print("tool:", message.content)

first, second = client.embed(model=EMBEDDING_MODEL, input=["a cat", "a kitten"]).embeddings
print("embeddings:", len(first), "and", len(second), "numbers")
