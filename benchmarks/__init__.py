"""Benchmarks, run as modules: `python -m benchmarks.NAME` measures something and writes a JSON file, and most a plot.

gpu_*, tpu_*, study_*, attention_* and inference_* are parts of the benchmarks that they are named after; `record` and
`measure` are what all share. `results_page`, `published_page` and `record_plots` make pages and plots of the records.
"""
