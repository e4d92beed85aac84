"""How each kind of engine is queried and commanded; requests themselves are OpenAI's with all of them.

Modules:
    contract: what a dialect is: health, facts, recognition, LoRA commands; the client that it is given.
    llamacpp: llama.cpp's llama-server.
    openai: any other OpenAI-compatible server.
    queries: what dialects share: reading JSON replies and the list of models.
    query: the client: the appliance's own queries and commands over HTTP.
    sglang: SGLang.
    table: kind → dialect, in the order of detection.
    vllm: vLLM.
"""
