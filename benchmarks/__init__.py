"""Benchmarks, run as modules: `python -m benchmarks.NAME` measures something and writes a JSON record, at most a plot.

`common` is what they share, `definition` is what results are compared with. `gpu_worker`, `fault_lab`, `studies`,
`attention_maps`, `tpu_compiler` and `tpu_bundles` are parts of the benchmarks beside them.
"""
