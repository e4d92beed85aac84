"""How each kind of engine is asked about itself."""
