"""Compressed files are read to their end or not at all, and what is no text is not learnt as text."""

import shutil
import subprocess
import zipfile

import pyarrow
import pyarrow.parquet
import pytest

from transnormer_jax.data.text_files import read_documents
from transnormer_jax.errors import UserError

LINES = [f"line {i} of a text that compresses" for i in range(20_000)]
TOOLS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}


def tool(name):
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name} here")
    return name


def compressed(directory, suffix, content, name="a.txt"):
    """What the command-line tool makes of a file."""
    plain = directory / "plain"
    plain.write_bytes(content)
    with open(directory / f"{name}{suffix}", "wb") as file:
        subprocess.run([tool(TOOLS[suffix]), "-q", "-c", plain], stdout=file, check=True)
    return directory / f"{name}{suffix}"


@pytest.mark.parametrize("suffix", TOOLS)
def test_all_members_are_read_and_a_file_cut_short_is_an_error(tmp_path, suffix):
    middle = len("\n".join(LINES)) // 2
    content = "\n".join(LINES).encode()
    one = compressed(tmp_path, suffix, content[:middle]).read_bytes()
    path = compressed(tmp_path, suffix, content[middle:])
    both = one + path.read_bytes()
    path.write_bytes(both)
    assert list(read_documents(path, "line")) == LINES
    for size in (0, 5, len(one) - 1, len(one) + 2, len(both) - 10, len(both) - 1):
        path.write_bytes(both[:size])
        with pytest.raises(UserError, match=rf"cannot read '.*a.txt{suffix}', which ends too early: replace it"):
            list(read_documents(path, "line"))
    for damaged in (content, one + b"\1\2" + both[len(one) + 2 :]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"cannot read '.*a.txt{suffix}' \(.*\): replace it"):
            list(read_documents(path, "line"))


@pytest.mark.parametrize("suffix", TOOLS)
@pytest.mark.parametrize("name", ["a.txt", "a.JSONL"])
def test_a_byte_order_mark_is_no_text(tmp_path, suffix, name):
    content = b'{"text": "one"}\r\n' if name == "a.JSONL" else b"one\r\n"
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
    path = compressed(tmp_path, suffix, b"\xef\xbb\xbf" + content, name)
    assert list(read_documents(tmp_path / name, "line")) == list(read_documents(path, "line")) == ["one"]


def archive(kind, directory):
    (directory / "a").write_text("one\n")
    (directory / "b").write_text("two\n")
    if kind == "zip":
        with zipfile.ZipFile(directory / "x", "w") as file:
            file.write(directory / "a", "a")
            file.write(directory / "b", "b")
    elif kind == "tar":
        subprocess.run(["tar", "-cf", directory / "x", "-C", directory, "a", "b"], check=True)
    elif kind == "Parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": ["one"]}), directory / "x")
    elif kind in ("UTF-16", "UTF-32"):
        (directory / "x").write_bytes("one".encode(kind))
    elif kind == "null bytes":
        (directory / "x").write_bytes("one".encode("utf-16-le"))
    else:
        name = {"gzip": "gzip", "bzip2": "bzip2", "xz": "xz", "Zstandard": "zstd"}[kind]
        with open(directory / "x", "wb") as file:
            subprocess.run([tool(name), "-q", "-c", directory / "a"], stdout=file, check=True)
    return (directory / "x").read_bytes()


KINDS = {
    "zip": "a zip archive and not UTF-8 text: unpack it and give the directory",
    "tar": "a tar archive and not UTF-8 text: unpack it and give the directory",
    "Parquet": "Parquet and not UTF-8 text: give its name the suffix .parquet",
    "UTF-16": "UTF-16 and not UTF-8 text: convert it with `iconv -f UTF-16 -t UTF-8`",
    "UTF-32": "UTF-32 and not UTF-8 text: convert it with `iconv -f UTF-32 -t UTF-8`",
    "null bytes": "null bytes and not UTF-8 text: leave it out, or convert it",
    "gzip": "gzip and not UTF-8 text: decompress it, or give its name the suffix .gz",
    "bzip2": "bzip2 and not UTF-8 text: decompress it, or give its name the suffix .bz2",
    "xz": "xz and not UTF-8 text: decompress it, or give its name the suffix .xz",
    "Zstandard": "Zstandard and not UTF-8 text: decompress it, or give its name the suffix .zst",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_text_is_refused_by_its_content(tmp_path, kind):
    content = archive(kind, tmp_path)
    paths = [tmp_path / "a.txt", tmp_path / "rows.jsonl", tmp_path / "README"]
    for path in paths:
        path.write_bytes(content)
    paths += [compressed(tmp_path, suffix, content) for suffix in TOOLS]
    for path in paths:
        with pytest.raises(UserError, match=rf"{path.name}' holds {KINDS[kind]}"):
            list(read_documents(path, "file"))
