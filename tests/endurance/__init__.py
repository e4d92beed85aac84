"""An endurance run: thousands of requests with faults of all kinds through a real appliance, every one accounted for.

`make endurance` runs it (`python -m tests.endurance --help`); test_endurance.py runs a small one.

Modules:
    clients: the clients: what they send, how they read, when they leave.
    figures: what the process holds: descriptors by kind, threads, memory, slots.
    kinds: the kinds of requests: where they go, and what a right answer to each is.
    ledger: one entry for each request, and the comparison of all accounts of it.
    run: the whole run: stand-ins, appliance, clients, kills, reloads, the report.
    standin: a server with OpenAI's API that misbehaves by seed and records what it is asked.
"""
