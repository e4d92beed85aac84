"""Which model is loaded, which is unloaded, and when. Decisions only: no I/O, no clock.

Modules:
    demand: how often a model is requested.
    fit: where a model fits, and what must be unloaded for it.
    scheduler: what must happen next.
    state: the values that are decided from, and the steps.
"""
