import itertools
import lzma
import os

import pytest
import tensorflow_datasets as tfds

from tests.shared import shared_file
from transnormer_jax.data.plain_text import PlainText, plain_text_config
from transnormer_jax.errors import UserError

NO_DOWNLOAD = tfds.download.DownloadConfig(try_download_gcs=False)


def build(tmp_path, files, documents="line", held_out=0.1):
    builder = PlainText(config=plain_text_config(str(files), documents, held_out), data_dir=tmp_path / "data")
    builder.download_and_prepare(file_format="array_record", download_config=NO_DOWNLOAD)
    return {
        split: [record["text"].decode() for record in builder.as_data_source(split)] for split in builder.info.splits
    }


def test_splits_part_the_documents_and_no_copy_crosses(tmp_path):
    lines = [f"line {number}" for number in range(1000)]
    (tmp_path / "one.txt").write_text("\n".join(lines))
    with lzma.open(tmp_path / "two.txt.xz", "wt") as file:
        file.write("\n".join(reversed(lines)))
    splits = build(tmp_path, tmp_path)
    assert sorted(itertools.chain(*splits.values())) == sorted(lines * 2)
    for one, other in itertools.combinations(("train", "validation", "test"), 2):
        assert not set(splits[one]) & set(splits[other])
    assert 60 < len(splits["validation"]) / 2 < 140
    assert 60 < len(splits["test"]) / 2 < 140


def test_a_document_keeps_its_split_when_others_come(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"line {number}" for number in range(100)))
    before = build(tmp_path, path)
    path.write_text("\n".join(f"line {number}" for number in range(50, 200)))
    after = build(tmp_path, path)
    assert set(before["train"]).isdisjoint(after["validation"])
    assert set(before["validation"]).isdisjoint(after["train"])


def test_nothing_held_out_is_all_training(tmp_path):
    (tmp_path / "text.txt").write_text("a\nb\nc")
    assert build(tmp_path, tmp_path / "text.txt", held_out=0.0) == {"train": ["a", "b", "c"]}


def test_changed_files_and_settings_are_new_datasets(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("old one")
    seen = [plain_text_config(str(path), "line")]
    assert build(tmp_path, path, held_out=0.0) == {"train": ["old one"]}
    path.write_text("new one")
    # The same size within the clock's tick: the time alone tells.
    os.utime(path, ns=(1, 1))
    assert build(tmp_path, path, held_out=0.0) == {"train": ["new one"]}
    seen.append(plain_text_config(str(path), "line"))
    seen.append(plain_text_config(str(path), "file"))
    seen.append(plain_text_config(str(path), "line", 0.2))
    assert len({config.name for config in seen}) == len(seen)
    assert plain_text_config(str(path), "line", 0.2).name == seen[-1].name


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_an_empty_corpus_is_the_users_error_and_leaves_nothing(tmp_path, content):
    (tmp_path / "text.txt").write_text(content)
    for _ in range(2):
        with pytest.raises(UserError, match="the text files hold no document"):
            build(tmp_path, tmp_path / "text.txt")
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_a_build_that_fails_halfway_leaves_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(f"line {number}" for number in range(1000)))
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(b"line\n" * 1000)[:-8])
    for _ in range(2):
        with pytest.raises(UserError, match=r"^cannot read .*b.txt.xz"):
            build(tmp_path, tmp_path)
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


@pytest.mark.parametrize("held_out", [-0.1, 0.5])
def test_a_bad_fraction_is_the_users_error(tmp_path, held_out):
    (tmp_path / "text.txt").write_text("a")
    with pytest.raises(UserError, match=f"held_out is {held_out}: choose a fraction"):
        build(tmp_path, tmp_path / "text.txt", held_out=held_out)


def test_wikipedia_extract(tmp_path):
    with lzma.open(shared_file("data/enwiki2015_first100M.txt.xz")) as archive:
        prefix = archive.read(1_000_000)
    (tmp_path / "wiki.txt").write_bytes(prefix)
    splits = build(tmp_path, tmp_path / "wiki.txt", documents="marked")
    texts = list(itertools.chain(*splits.values()))
    assert len(texts) == prefix.count(b"<doc id=")
    assert not any("<doc id=" in text or "</doc>" in text for text in texts)
    assert any(text.startswith("Anarchism\n") for text in texts)
