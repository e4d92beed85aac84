"""Metric families, and pages in Prometheus' text format and in OpenMetrics.

Modules:
    accounts: the families of accounts and money.
    exposition_read: parses metrics pages.
    exposition_write: renders metrics pages.
    histogram: a histogram's plain numbers.
    latencies: response times by backend and model, for engines that measure none themselves.
    market: the families of renting GPUs.
    models: the families of the model manager.
    registry: all families of the appliance.
    tallies: counters and histograms that cost little on the hot path.
"""
