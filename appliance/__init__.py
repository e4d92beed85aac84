"""One container that gives any machine an inference endpoint. The rooms are mapped in docs/architecture.md."""

__version__ = "0.1.0"
