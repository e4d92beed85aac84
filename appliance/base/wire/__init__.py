"""The pool of upstream connections of the hot path."""
