"""Measures the appliance beside nginx in one run.  `make bench`, or `python -m bench --quick`."""
