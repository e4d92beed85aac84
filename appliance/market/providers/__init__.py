"""Markets that rent out GPUs, one module each; none knows another.

Modules:
    calls: HTTP calls at a market: bounded, never redirected, repeated only where that is harmless.
    contract: what every market promises.
    ionet: io.net, paid ahead.
    readers: single values of what markets answer.
    table: all markets, a row each.
    vastai: vast.ai.
"""
