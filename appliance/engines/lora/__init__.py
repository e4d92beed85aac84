"""LoRA adapters: declared once, kept loaded on every backend of their model."""
