"""The shapes that several addresses use, as JSON schemas. Further fields are allowed everywhere."""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
WHOLE: Schema = {"type": "integer"}
YES_NO: Schema = {"type": "boolean"}
ANY_OBJECT: Schema = {"type": "object"}


def ref(name: str) -> Schema:
    """Return a reference to one of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def listed(items: Schema) -> Schema:
    """Return a list."""
    return {"type": "array", "items": items}


def either(*schemas: Schema) -> Schema:
    """Return a value that fits one of several."""
    return {"anyOf": list(schemas)}


def or_null(schema: Schema) -> Schema:
    """Return a value that may be null."""
    return either(schema, {"type": "null"})


def shape(required: dict[str, Schema] | None = None, optional: dict[str, Schema] | None = None) -> Schema:
    """Return an object of named fields."""
    made: Schema = {"type": "object", "properties": {**(required or {}), **(optional or {})}}
    return {**made, "required": list(required)} if required else made


def _error(fields: dict[str, Schema]) -> Schema:
    return shape({"error": shape({"message": TEXT, "type": TEXT}, fields)})


_CONTENT = or_null(either(TEXT, listed(ANY_OBJECT)))
_SAMPLING: dict[str, Schema] = {
    "model": TEXT,
    "temperature": or_null(NUMBER),
    "top_p": or_null(NUMBER),
    "stop": or_null(either(TEXT, listed(TEXT))),
    "seed": or_null(WHOLE),
    "stream": or_null(YES_NO),
}
_OLLAMA: dict[str, Schema] = {
    "stream": YES_NO,
    "options": ANY_OBJECT,
    "keep_alive": either(TEXT, NUMBER),
    "format": either(TEXT, ANY_OBJECT),
    "think": either(YES_NO, TEXT),
}
_OLLAMA_ANSWER: dict[str, Schema] = {
    "total_duration": WHOLE,
    "load_duration": WHOLE,
    "prompt_eval_count": WHOLE,
    "eval_count": WHOLE,
    "done_reason": TEXT,
}
_LIMITS = ("rpm", "rpd", "tpm", "tpd", "concurrency", "monthly_cap")
_CREDITS = ("remaining", "total", "overage", "cap", "held", "owed")

SCHEMAS: dict[str, Schema] = {
    # ---- errors, one for each dialect
    "ErrorOpenai": _error({"param": or_null(TEXT), "code": or_null(TEXT), "attempts": listed(ANY_OBJECT)}),
    "ErrorOllama": shape({"error": TEXT}, {"attempts": listed(ANY_OBJECT)}),
    "ErrorAnthropic": shape(
        {"type": {"const": "error"}, "error": shape({"type": TEXT, "message": TEXT})},
        {"request_id": or_null(TEXT)},
    ),
    "ErrorDetail": shape({"detail": TEXT}),
    "ErrorMarket": shape({"error": TEXT, "code": TEXT, "request_id": TEXT}, {"details": ANY_OBJECT}),
    # ---- OpenAI
    "Message": shape({"role": TEXT}, {"content": _CONTENT, "name": TEXT, "tool_calls": listed(ANY_OBJECT)}),
    "Usage": shape({"prompt_tokens": WHOLE, "total_tokens": WHOLE}, {"completion_tokens": WHOLE}),
    "ChatRequest": shape(
        {"messages": listed(ref("Message"))},
        {
            **_SAMPLING,
            "max_tokens": or_null(WHOLE),
            "max_completion_tokens": or_null(WHOLE),
            "n": or_null(WHOLE),
            "tools": or_null(listed(ANY_OBJECT)),
            "tool_choice": or_null(either(TEXT, ANY_OBJECT)),
            "response_format": or_null(ANY_OBJECT),
            "stream_options": or_null(ANY_OBJECT),
            "logprobs": or_null(YES_NO),
            "reasoning_effort": or_null(TEXT),
        },
    ),
    "ChatCompletion": shape(
        {
            "id": TEXT,
            "object": {"const": "chat.completion"},
            "created": WHOLE,
            "model": TEXT,
            "choices": listed(
                shape({"index": WHOLE, "message": ref("Message"), "finish_reason": or_null(TEXT)})
            ),
        },
        {"usage": or_null(ref("Usage"))},
    ),
    "CompletionRequest": shape(
        {"prompt": either(TEXT, listed(either(TEXT, WHOLE, listed(WHOLE))))},
        {**_SAMPLING, "max_tokens": or_null(WHOLE), "n": or_null(WHOLE), "echo": or_null(YES_NO)},
    ),
    "Completion": shape(
        {
            "id": TEXT,
            "object": TEXT,
            "model": TEXT,
            "choices": listed(shape({"index": WHOLE, "text": TEXT})),
        },
        {"usage": or_null(ref("Usage"))},
    ),
    "EmbeddingRequest": shape(
        {"input": either(TEXT, listed(either(TEXT, WHOLE, listed(WHOLE))))},
        {
            "model": TEXT,
            "dimensions": or_null(WHOLE),
            "encoding_format": or_null({"enum": ["float", "base64"]}),
        },
    ),
    "Embeddings": shape(
        {
            "object": {"const": "list"},
            "data": listed(shape({"index": WHOLE, "embedding": either(listed(NUMBER), TEXT)})),
            "model": TEXT,
        },
        {"usage": ref("Usage")},
    ),
    "Models": shape({"data": listed(ref("ModelCard"))}, {"object": TEXT}),
    "ModelCard": shape({"id": TEXT}, {"object": TEXT, "created": WHOLE, "owned_by": TEXT, "type": TEXT}),
    "ResponsesRequest": shape(
        {"input": either(TEXT, listed(ANY_OBJECT))},
        {
            **_SAMPLING,
            "instructions": or_null(TEXT),
            "max_output_tokens": or_null(WHOLE),
            "previous_response_id": or_null(TEXT),
            "store": or_null(YES_NO),
            "tools": or_null(listed(ANY_OBJECT)),
            "text": or_null(ANY_OBJECT),
            "reasoning": or_null(ANY_OBJECT),
        },
    ),
    "Response": shape(
        {
            "id": TEXT,
            "object": {"const": "response"},
            "model": TEXT,
            "status": TEXT,
            "output": listed(ANY_OBJECT),
        },
        {"usage": or_null(ANY_OBJECT), "error": or_null(ANY_OBJECT)},
    ),
    "TokenCount": shape({"input_tokens": WHOLE}),
    # ---- Anthropic
    "MessagesRequest": shape(
        {
            "messages": listed(shape({"role": TEXT, "content": either(TEXT, listed(ANY_OBJECT))})),
            "max_tokens": WHOLE,
        },
        {
            "model": TEXT,
            "system": either(TEXT, listed(ANY_OBJECT)),
            "stream": YES_NO,
            "stop_sequences": listed(TEXT),
            "tools": listed(ANY_OBJECT),
            "tool_choice": ANY_OBJECT,
            "temperature": NUMBER,
            "thinking": ANY_OBJECT,
        },
    ),
    "AnthropicMessage": shape(
        {
            "id": TEXT,
            "type": {"const": "message"},
            "role": TEXT,
            "model": TEXT,
            "content": listed(ANY_OBJECT),
            "stop_reason": or_null(TEXT),
            "usage": ANY_OBJECT,
        }
    ),
    # ---- Ollama
    "OllamaModel": shape(None, {"model": TEXT, "name": TEXT}),
    "OllamaChatRequest": shape(
        {"model": TEXT}, {**_OLLAMA, "messages": listed(ANY_OBJECT), "tools": listed(ANY_OBJECT)}
    ),
    "OllamaChat": shape(
        {"model": TEXT, "created_at": TEXT, "message": ANY_OBJECT, "done": YES_NO}, _OLLAMA_ANSWER
    ),
    "OllamaGenerateRequest": shape(
        {"model": TEXT},
        {**_OLLAMA, "prompt": TEXT, "suffix": TEXT, "system": TEXT, "images": listed(TEXT), "raw": YES_NO},
    ),
    "OllamaGenerate": shape(
        {"model": TEXT, "created_at": TEXT, "response": TEXT, "done": YES_NO}, _OLLAMA_ANSWER
    ),
    "OllamaEmbedRequest": shape(
        {"model": TEXT, "input": either(TEXT, listed(TEXT))}, {"truncate": YES_NO, "dimensions": WHOLE}
    ),
    "OllamaEmbed": shape({"model": TEXT, "embeddings": listed(listed(NUMBER))}),
    # ---- the appliance
    "Receipt": shape(
        {
            "id": TEXT,
            "at_s": NUMBER,
            "route": TEXT,
            "model": TEXT,
            "status": WHOLE,
            "finish": TEXT,
            "key": TEXT,
        },
        {"attempts": listed(ANY_OBJECT), "total_ms": NUMBER, "error": TEXT},
    ),
    "Receipts": shape({"receipts": listed(ref("Receipt")), "next": or_null(TEXT), "kept": WHOLE}),
    "Status": shape(
        {"ok": YES_NO, "state": {"enum": ["starting", "serving", "draining", "stopping"]}, "version": TEXT},
        {"demo": YES_NO, "public_model": TEXT, "in_flight": WHOLE, "backends": listed(ANY_OBJECT)},
    ),
    "Health": shape({"status": {"enum": ["ok", "degraded"]}}),
    "Strategy": shape({"strategy": TEXT}, {"message": TEXT}),
    "Ticket": shape({"ticket": TEXT, "parameter": TEXT, "path": TEXT, "url": TEXT, "expires_in_s": NUMBER}),
    "ModelLog": shape({"model": TEXT, "log": or_null(TEXT), "lines": listed(TEXT)}),
    "DownloadRequest": shape(
        {"source": TEXT, "output_dir": TEXT},
        {"config": ANY_OBJECT, "max_workers": WHOLE, "async_download": YES_NO},
    ),
    "Folder": shape({"output_dir": TEXT}, {"config": ANY_OBJECT, "async_download": YES_NO}),
    # ---- accounts and money; amounts are dollars with up to 6 decimals, times RFC 3339
    "Limits": shape(None, {name: or_null(NUMBER) for name in _LIMITS}),
    "User": shape(
        {
            "id": TEXT,
            "email": TEXT,
            "name": TEXT,
            "is_admin": YES_NO,
            "is_active": YES_NO,
            "plan": TEXT,
            "limits": ref("Limits"),
            "created_at": TEXT,
            "updated_at": TEXT,
        }
    ),
    "UserAnswer": shape({"user": ref("User")}),
    "Tokens": shape({"access_token": TEXT, "refresh_token": TEXT, "expires_at": TEXT}),
    "ApiKey": shape(
        {
            "id": TEXT,
            "prefix": TEXT,
            "name": TEXT,
            "scopes": listed(TEXT),
            "models": listed(TEXT),
            "limits": ref("Limits"),
            "stay_local": YES_NO,
            "last_used_at": or_null(TEXT),
            "expires_at": or_null(TEXT),
            "is_active": YES_NO,
            "created_at": TEXT,
        }
    ),
    "NewApiKey": shape(
        {
            "api_key": TEXT,
            "message": TEXT,
            "id": TEXT,
            "prefix": TEXT,
            "expires_at": or_null(TEXT),
            "key": ref("ApiKey"),
        },
        {"replaces": TEXT},
    ),
    "Session": shape(
        {
            "id": TEXT,
            "ip_address": TEXT,
            "user_agent": TEXT,
            "created_at": TEXT,
            "last_used_at": TEXT,
            "expires_at": TEXT,
            "is_current": YES_NO,
        }
    ),
    "Done": shape({"message": TEXT}, {"id": TEXT, "prefix": TEXT, "ended": WHOLE}),
    "Credits": shape(
        {
            "client_id": TEXT,
            **{f"credits_{name}": NUMBER for name in _CREDITS},
            "credits_auto_renew": YES_NO,
            "period_end": or_null(TEXT),
        }
    ),
    "UsageSession": shape(
        {
            "client_id": TEXT,
            "ip": TEXT,
            "date": TEXT,
            "time": TEXT,
            "duration": WHOLE,
            **{f"credits_{name}": NUMBER for name in _CREDITS[:4]},
            "credits_auto_renew": YES_NO,
        },
        {"id": TEXT, "created_at": TEXT},
    ),
    "UsageRow": shape(
        {"cost": NUMBER, "tokens_in": WHOLE, "tokens_cached": WHOLE, "tokens_out": WHOLE},
        {
            "attempt_id": TEXT,
            "at": TEXT,
            "model": TEXT,
            "served_model": TEXT,
            "backend": TEXT,
            "source": TEXT,
            "price_version": or_null(WHOLE),
            "attempts": WHOLE,
            "day": TEXT,
            "key": or_null(TEXT),
        },
    ),
    "LedgerEntry": shape({"id": TEXT, "kind": TEXT, "ref": TEXT, "at": TEXT, "amount": NUMBER, "note": TEXT}),
    "Spending": shape(
        {
            "user_id": TEXT,
            "total_spent": NUMBER,
            "window_spent": ANY_OBJECT,
            "window_limits": ANY_OBJECT,
            "violations": listed(shape({"window": TEXT, "limit": NUMBER, "spent": NUMBER})),
            "timestamp": TEXT,
        }
    ),
    "SpendingCheck": shape(
        {"allowed": YES_NO, "violations": listed(ANY_OBJECT), "spent": ANY_OBJECT},
        {"error": TEXT, "code": TEXT},
    ),
    "PriceRow": shape(
        {"model": TEXT, "source": {"enum": ["database", "file"]}},
        {
            **dict.fromkeys(("in", "cached_in", "out", "embedding", "per_request"), either(NUMBER, TEXT)),
            "version": WHOLE,
            "valid_from": TEXT,
            "gpu_hour_markup_percent": WHOLE,
        },
    ),
    "GpuOffer": shape(
        {
            **dict.fromkeys(("id", "provider", "gpu_name", "location"), TEXT),
            **dict.fromkeys(("vram_gb", "cpu_cores", "ram_gb", "storage_gb", "price_per_hour"), NUMBER),
            "gpu_count": WHOLE,
            "available": YES_NO,
            "specifications": ANY_OBJECT,
        }
    ),
    "Rental": shape(
        {
            **dict.fromkeys(("id", "contract_id", "provider", "instance_id", "state", "gpu_name"), TEXT),
            **dict.fromkeys(("vram_gb", "price_per_hour", "cost", "held"), NUMBER),
            **dict.fromkeys(("created_at", "lease_ends_at", "start_deadline_at"), TEXT),
            **dict.fromkeys(("address", "model", "end_reason", "alarm", "last_error"), TEXT),
            **dict.fromkeys(("ended_at", "reservation_id", "replaces"), or_null(TEXT)),
            "gpu_count": WHOLE,
        }
    ),
    "RentedInstance": shape(
        {**dict.fromkeys(("contract_id", "provider", "instance_id", "state"), TEXT), "rental": ref("Rental")}
    ),
    "RentConfig": shape(
        None,
        {
            **dict.fromkeys(("image", "onstart", "model"), TEXT),
            **dict.fromkeys(("disk_gb", "lease_s", "longest_s"), NUMBER),
            "env": {"type": "object", "additionalProperties": TEXT},
            "ports": listed({"type": "integer", "minimum": 1, "maximum": 65_535}),
            "command": listed(TEXT),
            "max_cost": either(NUMBER, TEXT),
        },
    ),
    "OfferFilters": shape(
        None,
        {
            **dict.fromkeys(("min_vram", "max_price", "reliability"), NUMBER),
            **dict.fromkeys(("gpu_model", "location", "provider"), TEXT),
            "min_gpus": WHOLE,
            "verified": YES_NO,
        },
    ),
    "MarketState": shape(
        {
            **dict.fromkeys(("install_id", "frozen_reason", "frozen_by"), TEXT),
            "frozen": YES_NO,
            "failed_starts": WHOLE,
            "paused_until": or_null(TEXT),
            "unknown_since": ANY_OBJECT,
            "credit": ANY_OBJECT,
            "alarms": listed(shape(dict.fromkeys(("kind", "subject", "since", "message"), TEXT))),
        }
    ),
    "AuditRow": shape(
        {
            "id": TEXT,
            "at": TEXT,
            "actor_kind": TEXT,
            "actor_id": or_null(TEXT),
            "action": TEXT,
            "subject_kind": or_null(TEXT),
            "subject_id": or_null(TEXT),
            "ip_address": TEXT,
            "details": ANY_OBJECT,
        }
    ),
    "Object": ANY_OBJECT,
}
