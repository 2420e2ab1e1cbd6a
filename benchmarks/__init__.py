"""How fast elastic networks are, against the best dense ones that a user could run instead: `python -m benchmarks`."""
