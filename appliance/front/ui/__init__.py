"""The web UI: its files, who is signed in, what its pages follow.

Modules:
    feed: what a page follows, one stream per page.
    files: the files that browsers load, from memory.
    handlers: the addresses below /ui.
    history: the last hour in samples, and what became of models.
    sessions: tokens that browsers keep instead of a key.
"""
