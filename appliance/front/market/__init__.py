"""GPUs of markets, and requests through the proxy, below /api/v1/gpu; joined only where MARKET is on.

Modules:
    proxy: requests that the appliance sends to a target for a user.
    proxy_charges: what such a request costs.
"""
