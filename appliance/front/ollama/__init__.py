"""Ollama's API.

Modules:
    context: the `context` of /api/generate.
    embed_input: embedding inputs longer than the context, cut or refused.
    handlers: the addresses.
    messages: Ollama's messages and tools as OpenAI's.
    models: the models that run here.
    ndjson: newline-delimited JSON.
    pull: download and delete models of Hugging Face.
    relayed: the models that run elsewhere.
    reply: OpenAI's replies and chunks as Ollama's objects.
    translated_request: Ollama's requests as OpenAI's.
"""
