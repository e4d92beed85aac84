"""The image itself: built by `tests/image/run`, started for real with the flags that the documentation names."""
