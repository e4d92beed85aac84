"""Requests that the appliance sends to a target for a user: `POST /api/v1/gpu/proxy`.

Modules:
    body_forms: JSON, text and bytes of bodies, as they are sent and shown.
    exchange: one request to a checked target, with its limits; the contract of protocols.
    fields: which header fields go up, and which come down.
    http: the protocols http and https.
    mcp: the protocol mcp, by the official SDK, which is loaded with the first such request.
    mcp_transport: how that SDK's requests go out through the checks of `sender`.
    openinference: the protocol openinference: Open Inference v2, and prompts as of language models.
    order: what a caller asks for, read from JSON.
    sender: opens requests: every address is checked, redirects too.
    service: the proxy: who asks, which protocol, how long.
    shares: how much of the proxy one user has.
"""
