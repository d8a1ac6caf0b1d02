"""Which files a list of paths and patterns names, and what it says of the others."""

from pathlib import Path

import fsspec
import pytest

from transnormer_jax.data.find_files import file_identity, find_files
from transnormer_jax.errors import UserError


def make(directory, *names):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("text")


def test_files_directories_and_patterns_are_found_once_and_sorted(tmp_path):
    names = ["b.txt", "a.txt.xz", "sub/c.txt.gz", "sub/d.md", "odd[1].txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(*patterns):
        files, _ = find_files(", ".join(f"{tmp_path}/{pattern}" for pattern in patterns))
        return [Path(file).relative_to(tmp_path.resolve()).as_posix() for file in files]

    assert found("") == ["a.txt.xz", "b.txt", "odd[1].txt", "sub/c.txt.gz"]
    assert found("sub/d.md", "b.txt", "*.txt") == ["b.txt", "odd[1].txt", "sub/d.md"]
    assert found("**/*.md", "sub") == ["sub/c.txt.gz", "sub/d.md"]
    assert found("odd[1].txt") == ["odd[1].txt"]


@pytest.mark.parametrize("pattern", ["missing.txt", "*.nothing", "empty"])
def test_a_missing_file_is_the_users_error(tmp_path, pattern):
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.txt").touch()
    with pytest.raises(UserError, match=r"no text file matches .*: give an existing file, directory or glob pattern"):
        find_files(f"{tmp_path}/there.txt,{tmp_path}/{pattern}")


@pytest.mark.parametrize("patterns", ["", " , "])
def test_no_files_is_the_users_error(patterns):
    with pytest.raises(UserError, match="'plain_text' needs files: set `files`"):
        find_files(patterns)


class Locked(fsspec.AbstractFileSystem):
    """A store that knows us not."""

    protocol = "locked"

    def info(self, path, **_):
        raise PermissionError("no credentials\nfor this bucket")


@pytest.mark.parametrize("url", ["locked://bucket/*.txt", "nonsense://bucket/a.txt"])
def test_a_store_that_does_not_answer_is_the_users_error(url):
    fsspec.register_implementation("locked", Locked, clobber=True)
    with pytest.raises(UserError, match=r"cannot look for '.*' \(.*\): check the name, the network, and"):
        find_files(url)


def names(directory, patterns):
    files = find_files(",".join(f"{directory}/{pattern}" for pattern in patterns.split(","))).files
    return [Path(file).relative_to(directory.resolve()).as_posix() for file in files]


def test_suffixes_in_any_case_and_only_those_of_text_and_records(tmp_path):
    taken = ["A.TXT", "Rows.Jsonl", "a.json", "b.ndjson", "c.jsonlines.zst", "d.txt.bz2", "e.Parquet"]
    make(tmp_path, *taken, "notes.md", "x.csv", "y.zip", "z.parquet.gz", "no suffix")
    assert names(tmp_path, "") == taken


def test_hidden_files_are_read_only_if_they_are_spelled(tmp_path):
    corpus = tmp_path / ".cache" / "corpus"
    make(corpus, "a.txt", ".b.txt", ".ipynb_checkpoints/a-checkpoint.txt", "__MACOSX/._a.txt", "sub/.git/c.txt")
    for patterns in ("", "**/*.txt", "*", "**"):
        assert names(corpus, patterns) == ["a.txt"]
    assert names(corpus, ".b.txt") == names(corpus, ".*.txt") == [".b.txt"]
    assert names(corpus, ".ipynb_checkpoints") == [".ipynb_checkpoints/a-checkpoint.txt"]
    assert names(corpus, "**/.git/*.txt") == ["sub/.git/c.txt"]
    assert names(corpus, "__MACOSX/._a.txt") == ["__MACOSX/._a.txt"]


def test_a_link_keeps_its_name(tmp_path):
    make(tmp_path, "blobs/abc")
    (tmp_path / "rows.jsonl").symlink_to(tmp_path / "blobs" / "abc")
    assert names(tmp_path, "rows.jsonl") == ["rows.jsonl"]
    (tmp_path / "blobs" / "abc").unlink()
    with pytest.raises(UserError, match=r"rows.jsonl' is gone, or a link to a file that is not there"):
        file_identity(find_files(str(tmp_path)).files[0])


def test_what_is_skipped_is_counted(tmp_path):
    make(tmp_path, *(f"{i}.txt" for i in range(3)), *(f"{i}.md" for i in range(200)), "x.csv", ".hidden.md")
    assert str(find_files(str(tmp_path))) == "took 3 .txt, skipped 200 .md, 1 .csv"
    assert str(find_files(f"{tmp_path},{tmp_path}/*.md")) == "took 200 .md, 3 .txt, skipped 1 .csv"
    assert str(find_files(f"{tmp_path}/*.txt")) == "took 3 .txt"


def test_a_directory_of_other_files_says_what_it_holds(tmp_path):
    make(tmp_path, "md/a.md", "md/b.md", "csv/a.csv", "none/README")
    with pytest.raises(UserError, match=r"which holds 2 .md: to read .md as plain text, give '.*/md/\*\*/\*\.md'\.$"):
        find_files(f"{tmp_path}/md")
    with pytest.raises(UserError, match=r"which holds 1 .csv: to use '.*a.csv', convert it to Parquet or"):
        find_files(f"{tmp_path}/csv")
    with pytest.raises(UserError, match=r"which holds 1 without suffix: to read them as plain text, give '.*/\*'\.$"):
        find_files(f"{tmp_path}/none")
    assert names(tmp_path, "md/**/*.md,none/**/*") == ["md/a.md", "md/b.md", "none/README"]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("rows.csv", "convert it to Parquet or JSON lines"),
        ("rows.TSV.gz", "convert it to Parquet or JSON lines"),
        ("texts.zip", "unpack it and give the directory"),
        ("texts.tar.gz", "unpack it and give the directory"),
        ("texts.tar.zst", "unpack it and give the directory"),
        ("texts.tgz", "unpack it and give the directory"),
        ("paper.pdf", "extract its text"),
        ("a.txt.lz4", "decompress it"),
        ("a.parquet.gz", "decompress it"),
        ("weights.safetensors", "leave it out"),
    ],
)
def test_a_name_that_says_it_is_no_text_is_refused(tmp_path, name, advice):
    make(tmp_path, name, "a.txt")
    for pattern in (name, "*"):
        with pytest.raises(UserError, match=rf"{name}' is not plain text, JSON or Parquet: .*{advice}"):
            find_files(f"{tmp_path}/{pattern}")
    assert names(tmp_path, "") == ["a.txt"]


@pytest.mark.parametrize("name", ["a,b.txt", "~no_user.txt", "a#%20[b]?.txt"])
def test_a_file_of_any_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    for given in (name, str(tmp_path / name)):
        assert find_files(given).files == (str(tmp_path.resolve() / name),)
