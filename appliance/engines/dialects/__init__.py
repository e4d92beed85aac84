"""How each kind of engine is queried and commanded; requests themselves are OpenAI's with all of them.

Modules:
    client: the HTTP client for the appliance's own queries and commands.
    contract: what a dialect is: health, facts, recognition, LoRA commands; the client that it is given.
    llamacpp: llama.cpp's llama-server.
    openai: any other OpenAI-compatible server.
    queries: reading JSON replies and the list of models, as all dialects do.
    sglang: SGLang.
    table: kind → dialect, in the order of detection.
    vllm: vLLM.
"""
