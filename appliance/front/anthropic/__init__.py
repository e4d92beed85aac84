"""Anthropic's Messages API, on top of chat completions.

Modules:
    content: its messages as chat messages.
    handlers: its addresses.
    request: its request as a chat request.
    response: a chat reply as its message.
    stream: chat chunks as its event stream.
"""
