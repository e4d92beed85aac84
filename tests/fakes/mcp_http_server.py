"""An MCP server of the official SDK, of its second or first generation: `python mcp_http_server.py PORT TRANSPORT`."""

import sys

try:
    from mcp.server import MCPServer as Server
except ImportError:  # the generation before
    from mcp.server.fastmcp import FastMCP as Server


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


if __name__ == "__main__":
    port, transport = int(sys.argv[1]), sys.argv[2]
    if Server.__name__ == "MCPServer":
        server = Server("adder")
        server.tool()(add)
        server.run(transport=transport, host="127.0.0.1", port=port)
    else:
        server = Server("adder", host="127.0.0.1", port=port)
        server.tool()(add)
        server.run(transport=transport)
