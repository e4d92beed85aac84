"""The table of models and the model files."""
