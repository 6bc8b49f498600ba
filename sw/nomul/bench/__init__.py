"""Comparisons that the documentation quotes, on files given by argument: ``python -m nomul.bench.NAME --help``."""
