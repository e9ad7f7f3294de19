"""Measurements beside peers, run as ``python -m benchmarks.NAME`` from the repository; never part of the tests."""
