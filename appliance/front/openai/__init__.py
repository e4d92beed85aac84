"""OpenAI's API.

Modules:
    anthropic_models: the list of models for Anthropic's clients.
    handlers: models, chat, completions, embeddings.
    plain_chat: chats whose fields are right, recognised in one pass.
    responses: the Responses API, on top of chat completions.
    responses_items: its input items as chat messages.
    responses_objects: its objects: a response and its items.
    responses_request: its request as a chat request.
    responses_store: responses that are kept for a while.
    responses_stream: chat chunks as its event stream.
    responses_tools: its tools as chat's functions, and back.
"""
