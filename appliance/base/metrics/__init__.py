"""The metrics of the appliance: families, plain counters, and reading and writing of metrics pages."""
