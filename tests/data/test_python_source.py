import argparse
import inspect
import platform

import tensorflow_datasets as tfds

from transnormer_jax.data.python_source import PythonSource, python_source_config


def test_the_standard_library_is_a_corpus(tmp_path):
    builder = PythonSource(config=python_source_config(), data_dir=tmp_path)
    download = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(file_format="array_record", download_config=download)
    texts = {
        split: {record["path"].decode(): record["text"].decode() for record in builder.as_data_source(split)}
        for split in builder.info.splits
    }
    both = texts["train"] | texts["validation"]
    assert len(both) == len(texts["train"]) + len(texts["validation"])
    assert both["argparse.py"] == inspect.getsource(argparse)
    assert "json/decoder.py" in both
    assert all(text.strip() for text in both.values())
    left_out = ("test/", "tests/", "site-packages/", "lib2to3/", "encodings/", "pydoc_data/", "_sysconfigdata")
    assert not [path for path in both if path.startswith(left_out) or "/test/" in path or "/tests/" in path]

    held_out = sum(map(len, texts["validation"].values())) / sum(map(len, both.values()))
    assert 0.02 < held_out < 0.1
    assert 5e6 < sum(map(len, both.values())) < 2e7
    assert platform.python_version() in builder.info.full_name
