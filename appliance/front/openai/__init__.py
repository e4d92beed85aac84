"""OpenAI's API.

Modules:
    anthropic_models: the list of models for Anthropic's clients.
    handlers: models, chat, completions, embeddings.
    responses: the Responses API, on top of chat completions.
    responses_objects: its objects: a response and its items.
    responses_request: its request as a chat request.
    responses_stream: chat chunks as its event stream.
"""
