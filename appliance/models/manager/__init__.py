"""The model manager: who waits for which model, which runners run, and what is done next."""
