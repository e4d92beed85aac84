"""LlamaIndex: a stream, and an answer from documents that are found by their embeddings.

pip install llama-index-core llama-index-llms-openai-like llama-index-embeddings-openai-like
"""

import os

from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

URL = os.environ.get("BASE_URL", "http://127.0.0.1:14000")
KEY = os.environ.get("API_KEY", "any")
MODEL = os.environ.get("MODEL", "demo")
EMBEDDING_MODEL = os.environ.get("EMBEDDING_MODEL", MODEL)
TEXTS = ["The appliance listens on port 14000.", "Cats sleep most of the day.", "Paris lies on the Seine."]

Settings.llm = OpenAILike(
    api_base=f"{URL}/v1",
    api_key=KEY,
    model=MODEL,
    is_chat_model=True,  # else it asks /v1/completions, without the model's chat template
    is_function_calling_model=True,
    context_window=int(os.environ.get("CONTEXT", "32768")),  # of the model; it cannot ask for it
)
Settings.embed_model = OpenAILikeEmbedding(api_base=f"{URL}/v1", api_key=KEY, model_name=EMBEDDING_MODEL)

print("stream:", end=" ")
for part in Settings.llm.stream_complete("Hello"):
    print(part.delta, end="", flush=True)
print()

index = VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS])
answer = index.as_query_engine(similarity_top_k=1).query("Which port does the appliance listen on?")
print("found:", answer.source_nodes[0].text)
print("answer:", answer.response)
