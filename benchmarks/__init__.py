"""Benchmarks, run as modules (`python -m benchmarks.NAME`): each writes a JSON file, and most a plot."""
