"""Metrics of engines under one set of names.

Modules:
    copies: an engine's families under other names.
    derived: our metrics that are computed from several of an engine.
    engine_page: an engine's page by the plain names of its families.
    extras: what is known of an engine besides its page.
    families: our metrics, and what each engine calls them.
    normalise: a page with our names added, and what is missing or invalid.
    scrape: one engine's page read over HTTP.
    values: single values out of a page, without parsing it.
"""
