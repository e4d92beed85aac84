"""KV events: follows an engine's KV cache, and keeps an index of its blocks in Redis for routers.

Modules:
    blocks: the blocks that the engine has, and what the index does not have yet (decisions only).
    counters: what was counted, as metric families.
    events: the engine's messages read, and blocks named as routers name them.
    follower: follows one engine.
    index: the keys and values in Redis.
    index_writer: the loop that keeps the index up to date.
    subscription: the ZeroMQ subscription to the engine's publisher.
    times: how long the parts wait.
"""
