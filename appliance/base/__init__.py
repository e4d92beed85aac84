"""Ground floor: tools any room may use; knows none of our business words.

settings (machinery) · errors (Kind, ApplianceError) · logs · lines (the ring that control tails) · clock · tasks · watch · jsons · files
proxies (those of the environment, for downloads)
wire, wire_connection (the pooled upstream connection of the hot path) · metrics (all families)
"""
