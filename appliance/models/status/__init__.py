"""What the manager reports about itself."""
