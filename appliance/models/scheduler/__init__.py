"""Which model is loaded, which is unloaded, and when. Decisions only."""
