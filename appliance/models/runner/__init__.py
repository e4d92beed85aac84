"""One llama-server process: start, memory, end, and what outlives us."""
