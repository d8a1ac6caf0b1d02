"""Paths on disks and stores: what is refused, what appears whole, what a host copies once."""

import importlib.util
import os
import threading
from pathlib import Path

import pytest

from transnormer_jax import storage
from transnormer_jax.errors import UserError


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """A host that has copied nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("az://container/run", "cannot be used"),
        ("memory://run", "cannot be used"),
        ("file:///tmp/run", "local path"),
        ("gs://", "names no bucket"),
        ("gs:/bucket/run", "names no bucket"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused(text, words):
    with pytest.raises(UserError, match=words):
        storage.as_path(text)


@pytest.mark.parametrize(("url", "package"), [("gs://b/run", "gcsfs"), ("s3://b/run", "s3fs")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, url, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(UserError, match=f"pip install {package}"):
        storage.as_path(url)


def test_a_local_path_is_what_a_shell_makes_of_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert str(storage.as_path("~/run")) == "/home/me/run"
    assert str(storage.as_path("runs/quick:start")) == "runs/quick:start"
    assert str(storage.absolute(Path("run"))) == f"{os.getcwd()}/run"
    assert not storage.is_remote(storage.as_path("run"))


@pytest.mark.parametrize("text", ["s3://bucket/run", "az://container/run", "memory://run"])
def test_a_store_without_checkpoints_is_no_workdir(text):
    with pytest.raises(UserError, match="local disks and to gs://"):
        storage.check_workdir(text)


def test_a_directory_that_can_be_written_is_a_workdir_and_stays_as_it_is(tmp_path):
    assert storage.check_workdir(tmp_path / "new" / "run") == storage.as_path(tmp_path / "new" / "run")
    assert storage.check_workdir(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("inside", ["", "/run", "/run/deeper"])
def test_a_file_is_no_workdir_and_neither_is_what_would_be_inside_it(tmp_path, inside):
    (tmp_path / "README.md").write_text("text")
    with pytest.raises(UserError, match=r"README.md' is a file.*choose another --workdir"):
        storage.check_workdir(f"{tmp_path}/README.md{inside}")
    assert (tmp_path / "README.md").read_text() == "text"


@pytest.mark.parametrize("place", ["/dev/null", "/proc/none/run", "/sys/none", "x" * 300, "new/" + "x" * 300])
def test_no_workdir_where_nothing_can_be_made(place):
    with pytest.raises(UserError, match="cannot be"):
        storage.check_workdir(place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_of_others_is_no_workdir(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        storage.check_workdir(tmp_path / "run")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "config.json"
    storage.write_text(path, "first")

    def refuse(self, target):
        raise OSError("no room")

    monkeypatch.setattr(type(storage.as_path(path)), "replace", refuse)
    with pytest.raises(OSError, match="no room"):
        storage.write_text(path, "second")
    assert path.read_text() == "first"
    assert [child.name for child in path.parent.iterdir()] == ["config.json"]


def test_children_of_a_name_with_brackets(tmp_path):
    (tmp_path / "run[1]" / "b").mkdir(parents=True)
    (tmp_path / "run[1]" / "a").mkdir()
    assert [child.name for child in storage.children(tmp_path / "run[1]")] == ["a", "b"]
    assert storage.children(tmp_path / "none") == []


def test_what_is_local_is_its_own_copy(tmp_path):
    assert storage.local_copy(str(tmp_path)) == tmp_path


@pytest.mark.slow
def test_a_bucket_is_a_workdir_and_stays_as_it_is(gs):
    path = storage.check_workdir("gs://bench/checked")
    assert str(path) == "gs://bench/checked"
    assert str(storage.absolute(path / "checkpoints")) == "gs://bench/checked/checkpoints"
    assert storage.children(path) == []


def test_a_missing_bucket_is_no_workdir(gs):
    with pytest.raises(UserError, match="no such bucket"):
        storage.check_workdir("gs://none/run")


def test_an_object_is_no_workdir(gs):
    storage.write_text(storage.as_path("gs://bench/object"), "text")
    with pytest.raises(UserError, match="it is a file"):
        storage.check_workdir("gs://bench/object")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_host_copies_once_and_again_what_has_changed(request, own_cache, scheme):
    request.getfixturevalue(scheme)
    source = storage.as_path(f"{scheme}://bench/copied")
    storage.write_text(source / "one.txt", "one")
    storage.write_text(source / "deep" / "two.txt", "two")
    copies = list[Path]()
    processes = [threading.Thread(target=lambda: copies.append(storage.local_copy(source))) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(copies) == 4
    [copy] = set(copies)
    assert (copy / "one.txt").read_text() == "one"
    assert (copy / "deep" / "two.txt").read_text() == "two"
    assert own_cache in copy.parents
    assert storage.local_copy(source / "one.txt").read_text() == "one"
    storage.write_text(source / "one.txt", "changed")
    assert (storage.local_copy(source) / "one.txt").read_text() == "changed"


def test_a_copy_of_nothing_is_refused(gs, own_cache):
    with pytest.raises(UserError, match="no such bucket, file or directory"):
        storage.local_copy("gs://bench/none")


def test_a_mirror_copies_what_changed_and_all_at_its_end(gs, tmp_path):
    target = storage.as_path("gs://bench/mirror")
    mirror = storage.Mirror(tmp_path, target, every_seconds=1000.0)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "lines").write_text("one\n")
    mirror.copy_soon()
    while not (target / "deep" / "lines").exists():
        pass
    assert (target / "deep" / "lines").read_text() == "one\n"
    (tmp_path / "deep" / "lines").write_text("one\ntwo\n")
    mirror.close()
    assert (target / "deep" / "lines").read_text() == "one\ntwo\n"


def test_a_mirror_that_the_store_refuses_says_so_at_its_end(gs, tmp_path):
    mirror = storage.Mirror(tmp_path, storage.as_path("gs://none/mirror"), every_seconds=1000.0)
    (tmp_path / "lines").write_text("one\n")
    with pytest.raises(UserError, match="gs://none/mirror' cannot be written"):
        mirror.close()


def test_a_directory_and_a_file_are_made_on_a_store(gs):
    with storage.written_locally("gs://bench/made/directory") as local:
        local.mkdir()
        (local / "a.txt").write_text("a")
    with storage.written_locally("gs://bench/made/file.txt") as local:
        local.write_text("b")
    assert storage.as_path("gs://bench/made/directory/a.txt").read_text() == "a"
    assert storage.as_path("gs://bench/made/file.txt").read_text() == "b"


@pytest.mark.parametrize("place", ["disk", "gs"])
def test_a_directory_moves_where_no_parent_is(request, tmp_path, place):
    if place == "gs":
        request.getfixturevalue("gs")
    root = storage.as_path(str(tmp_path) if place == "disk" else "gs://bench/moved")
    storage.write_text(root / "checkpoints" / "5" / "params" / "a", "content")
    storage.move(root / "checkpoints" / "5", root / "broken" / "5")
    assert (root / "broken" / "5" / "params" / "a").read_text() == "content"
    assert not (root / "checkpoints" / "5").exists()
