"""An MCP server on stdin and stdout with one tool, `lookup`, for clients that start one. Standard library alone."""

import json
import sys
from typing import Any

LOOKUP = {
    "name": "lookup",
    "description": "Look something up",
    "inputSchema": {"type": "object", "properties": {"q": {"type": "string"}}},
}


def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a request; {} for what is not known here."""
    if method == "initialize":
        server = {"name": "lookup", "version": "1"}
        version = params["protocolVersion"]
        return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": server}
    if method == "tools/list":
        return {"tools": [LOOKUP]}
    if method == "tools/call":
        return {"content": [{"type": "text", "text": f"found {params['arguments']['q']}"}]}
    return {}


if __name__ == "__main__":
    for line in sys.stdin:
        request = json.loads(line)
        if "id" in request:
            result = answer(request["method"], request.get("params") or {})
            print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}), flush=True)
