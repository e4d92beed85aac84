"""KV events of an engine, and the index of its blocks in Redis."""
