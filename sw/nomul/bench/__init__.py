"""Measurements that take their files by argument: ``python -m nomul.bench.NAME --help``."""
