"""LangChain: a stream, an agent with a tool, an object that fits a schema, embeddings.

pip install langchain langchain-openai
"""

import os

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

URL = os.environ.get("BASE_URL", "http://127.0.0.1:14000")
KEY = os.environ.get("API_KEY", "any")
MODEL = os.environ.get("MODEL", "demo")
EMBEDDING_MODEL = os.environ.get("EMBEDDING_MODEL", MODEL)
QUESTION = "How warm is it in Paris?"

chat = ChatOpenAI(base_url=f"{URL}/v1", api_key=KEY, model=MODEL)  # use_responses_api=True works as well
print("stream:", end=" ")
for chunk in chat.stream("Hello"):
    print(chunk.content, end="", flush=True)
print()


def weather(city: str) -> str:
    """Say how warm it is in a city."""
    return f"20 degrees in {city}"


agent = create_agent(chat, tools=[weather])
done = agent.invoke({"messages": [{"role": "user", "content": QUESTION}]})
print("tool:", done["messages"][-1].content)


class Colour(BaseModel):
    """The colour of something."""

    name: str


colour = chat.with_structured_output(Colour, method="json_schema").invoke("Which colour has grass?")
print("object:", colour.model_dump_json())

# Without check_embedding_ctx_length=False it fetches OpenAI's table of tokens, and sends their numbers.
embeddings = OpenAIEmbeddings(
    base_url=f"{URL}/v1", api_key=KEY, model=EMBEDDING_MODEL, check_embedding_ctx_length=False
)
first, second = embeddings.embed_documents(["a cat", "a kitten"])
print("embeddings:", len(first), "and", len(second), "numbers")
