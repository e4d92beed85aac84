"""The HTTP door: OpenAI's and Ollama's dialects, status, metrics.

routes (every address) · call (what a handler takes and gives) · lane (hot requests, straight from the socket), heads
server (aiohttp, all the rest) · middleware (ids, access, limits, log line) · errors · body · sse · openai · responses
ollama · system
"""
