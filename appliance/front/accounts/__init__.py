"""Accounts and money over HTTP, below /api/v1; joined only where ACCOUNTS is on.

Modules:
    admin: users and their credits, for operators.
    api_keys: a user's API keys.
    auth: registration, login, sessions, passwords.
    billing: a user's credits, usage and movements of money.
    bodies: what callers send, bounded and checked.
    caller: who calls, for handlers.
    groups: all handler groups, joined.
    guardrails: limits on what a user spends in spans of time.
    money: prices, the ledger and the audit, for operators.
    users: the user itself: profile, export, deletion.
"""
