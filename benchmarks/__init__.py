"""Benchmarks, run as modules (`python -m benchmarks.NAME`): each writes one JSON file and one plot."""
