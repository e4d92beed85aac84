"""Accounts: who calls, what a caller may do, limits, sessions."""
