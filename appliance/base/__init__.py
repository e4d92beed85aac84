"""Ground floor: tools any room may use; knows none of our business words.

settings (machinery) · errors (Kind, ApplianceError) · logs · clock · tasks · watch · jsons · http (control-plane client)
wire (the pooled upstream connection of the hot path) · net (addresses) · metrics (all families)
"""
