"""The model manager's addresses."""
