import argparse
import inspect
import platform

from transnormer_jax.data.held_out import text_key
from transnormer_jax.data.python_source import PythonSource, modules


def test_the_standard_library_is_a_corpus():
    both, read = dict(modules()), [*PythonSource().read(0)]
    assert [text for _, text in read] == [*both.values()]
    assert both["argparse.py"] == inspect.getsource(argparse)
    assert "json/decoder.py" in both
    assert all(text.strip() for text in both.values())
    left_out = ("test/", "tests/", "site-packages/", "lib2to3/", "encodings/", "pydoc_data/", "_sysconfigdata")
    assert not [path for path in both if path.startswith(left_out) or "/test/" in path or "/tests/" in path]

    assert [key for key, _ in read] == [text_key(path) for path in both]
    assert 5e6 < sum(map(len, both.values())) < 2e7
    assert platform.python_version() in PythonSource.fingerprint
