"""Downloads of model files: sources, resume, verification, jobs."""
