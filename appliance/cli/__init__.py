"""Command lines of people and scripts; they talk to a running appliance over the wire only.

calls (the wire) · show (tables, lines, JSON) · ctl (the commands of `appliance ctl`)
"""
