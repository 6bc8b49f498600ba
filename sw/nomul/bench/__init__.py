"""Comparisons that the documentation quotes: ``python -m nomul.bench.NAME``."""
