"""The comparison that the design rests on, for anyone to run: `make bench`, or `python -m tests.bench --help`."""
