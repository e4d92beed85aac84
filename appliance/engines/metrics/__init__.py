"""Metrics of engines under one set of names."""
