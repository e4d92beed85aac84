"""Anthropic's Messages API, on top of chat completions.

Modules:
    content: its messages as chat messages.
    handlers: its addresses.
    offered_tools: the tools that a conversation has loaded, added and removed.
    request: its request as a chat request.
    response: a chat reply as its message.
    stream: chat chunks as its event stream.
"""
