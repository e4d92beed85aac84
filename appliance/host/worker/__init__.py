"""The third-party worker CLI inside the container."""
