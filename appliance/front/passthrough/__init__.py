"""Requests that are handed to a backend as they came."""
