"""Shared by all tests: nothing here talks to anything but this machine."""
