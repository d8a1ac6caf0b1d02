"""Paths on local disks and object stores: open, write whole files, upload, copy once per host.

A path is an `etils.epath.Path`. Orbax writes checkpoints to local disks and to Google Cloud Storage, so a workdir can
be on these two. Data and tokenizers are also read from Amazon S3.
"""

import fcntl
import hashlib
import importlib.util
import os
import re
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
from etils import epath

from transnormer_jax.errors import UserError, first_line

# Both kinds have the same methods, as far as they are used.
type AnyPath = epath.Path | Path

# Scheme -> the package by which fsspec reaches it; the extra of the same name as the scheme installs it.
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
_EXTRAS = {"gs": "gcs", "s3": "s3"}
_WORKDIR_SCHEMES = ("gs",)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|(gs|s3):/")


def as_path(text: str | os.PathLike[str]) -> epath.Path:
    """Returns the path of a text: a local one, in which `~` is expanded, or a URL of a store.

    Raises:
      UserError: the store is of a kind that cannot be used, or the package for it is not installed.
    """
    if isinstance(text, epath.Path):
        return text
    name = os.fspath(text)
    match = _SCHEME.match(name)
    if not match:
        return epath.Path(name).expanduser()
    scheme = match[1] or match[2]
    if scheme not in _PACKAGES:
        known = " or ".join(f"{one}://" for one in _PACKAGES)
        raise UserError(f"{name!r} cannot be used: give a local path or a URL that begins with {known}.")
    if not re.match(rf"{scheme}://[^/]+", name):
        raise UserError(f"{name!r} names no bucket: write {scheme}://BUCKET/PATH.")
    if importlib.util.find_spec(_PACKAGES[scheme]) is None:
        raise UserError(
            f"{name!r} needs the package {_PACKAGES[scheme]}: pip install {_PACKAGES[scheme]} (in a clone, "
            f"pip install -e '.[{_EXTRAS[scheme]}]')."
        )
    # Other hosts write to the same store, so a listing is never remembered.
    fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
    if scheme == "gs":
        fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    os.environ.setdefault("EPATH_USE_TF", "false")  # TensorFlow's own client knows neither emulators nor gcsfs's logins
    return epath.Path(name)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is on a store."""
    return "://" in os.fspath(path)


def local_path(text: str) -> Path:
    """Returns the path of a text where a store cannot be written to.

    Raises:
      UserError: it is a URL.
    """
    if _SCHEME.match(text):
        raise UserError(f"{text!r} is not on a local disk: give a local path, and copy the result.")
    return Path(text).expanduser()


def absolute(path: AnyPath) -> epath.Path:
    """Returns the path from the root of the file system on; a URL is already."""
    return as_path(path) if is_remote(path) else epath.Path(os.path.abspath(path))


def children(directory: AnyPath) -> list[epath.Path]:
    """Returns what a directory contains, sorted by name; nothing where there is none."""
    directory = as_path(directory)
    if not directory.is_dir():
        return []
    return sorted(directory / child.name for child in directory.iterdir())


def write_text(path: AnyPath, text: str) -> None:
    """Writes a file that appears at once and whole, and makes its directory.

    Raises:
      OSError: the disk or the store refuses.
    """
    path = as_path(path)
    if is_remote(path):  # a store shows an object when it is complete
        path.write_text(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        scratch.write_text(text)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def publish(directory: Path, write: Callable[[Path], None]) -> None:
    """Makes a local `directory` with what `write` puts into the empty directory that it is given.

    The directory appears at once and whole: a killed or failed process leaves none, and of racing processes one wins.

    Raises:
      OSError: the disk refuses.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="incomplete.", dir=directory.parent) as scratch:
        written = Path(scratch) / "contents"
        written.mkdir()
        write(written)
        try:
            os.rename(written, directory)
        except OSError:
            # Another process finished the same work first.
            if not directory.exists():
                raise


def upload(directory: Path, target: AnyPath, *, last: str = "") -> None:
    """Copies all files below a local directory to a store.

    Args:
      directory: on a local disk.
      target: the directory of the store.
      last: a file that is copied after all others, by which readers know that they are there.
    """
    files = [file for file in sorted(directory.rglob("*")) if file.is_file() and file.name != last]
    store, root = _store(target)
    if files:
        store.put([str(file) for file in files], [f"{root}/{file.relative_to(directory).as_posix()}" for file in files])
    if last:
        store.put_file(str(directory / last), f"{root}/{last}")


def move(directory: AnyPath, target: AnyPath) -> None:
    """Moves a directory to a new place on the same disk or store, whose parent is made."""
    if not is_remote(directory):
        as_path(target).parent.mkdir(parents=True, exist_ok=True)
        os.rename(directory, target)
        return
    # epath would ask for the parent to exist, and a store has no empty directories.
    store, root = _store(directory)
    _, aside = _store(target)
    for name in store.find(root):
        store.cp_file(name, aside + name.removeprefix(root))
    store.rm(root, recursive=True)


def local_copy(path: AnyPath | str) -> Path:
    """Returns a local path with the contents of a file or a directory; a local path is its own.

    What is on a store is copied once per host, into `cache_directory()`, and again when it has changed. Processes of
    the host wait for the one that copies.

    Raises:
      UserError: it does not exist, cannot be read, or there is no room for it.
    """
    path = as_path(path)
    if not is_remote(path):
        return Path(path)
    cache = cache_directory() / "copies"
    try:
        store, root = _store(path)
        files = {root: store.info(root)} if store.isfile(root) else store.find(root, detail=True)
        if not files:
            raise FileNotFoundError(root)
        identity = sorted((name, info["size"], _version(info)) for name, info in files.items())
        digest = hashlib.sha256(repr((str(path), identity)).encode()).hexdigest()[:16]
        copy = cache / digest / path.name
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{digest}.lock"):
            if not copy.exists():
                publish(copy.parent, lambda scratch: _download(store, root, list(files), scratch / path.name))
    except Exception as error:  # of any store
        if isinstance(error, OSError) and error.filename and str(error.filename).startswith(str(cache)):
            raise UserError(
                f"the copy of {str(path)!r} cannot be written to {str(cache)!r} ({error.strerror}): set XDG_CACHE_HOME "
                "to a directory with room for it."
            ) from error
        raise UserError(f"{str(path)!r} cannot be read ({reason(error)}): {remedy(error)}.") from error
    return copy


def cache_directory() -> Path:
    """Returns the directory of this host for copies of what is on stores."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "transnormer_jax"


def check_workdir(path: AnyPath | str) -> epath.Path:
    """Returns the path of a workdir in which files can be made; makes and leaves nothing itself.

    Raises:
      UserError: it cannot be written, is on a store that takes no checkpoints, or a file is in its place.
    """
    match = _SCHEME.match(os.fspath(path))
    if match and (match[1] or match[2]) not in _WORKDIR_SCHEMES:
        raise UserError(
            f"{os.fspath(path)!r} cannot be a workdir: checkpoints are written to local disks and to gs:// alone; give "
            "one of them."
        )
    path = as_path(path)
    try:
        if is_remote(path):
            _try_store(path)
        else:
            _try_disk(Path(os.path.abspath(path)))
    except NotADirectoryError as error:
        raise UserError(f"{str(path)!r} cannot be a directory ({error.args[0]}): choose another --workdir.") from error
    except Exception as error:  # of any store
        mend = remedy(error) if is_remote(path) else "choose a --workdir that you may write to"
        raise UserError(f"{str(path)!r} cannot be written ({reason(error)}): {mend}.") from error
    return path


def _try_disk(directory: Path) -> None:
    """Makes a file without a name where the directory is or would be made."""
    ancestor = directory
    while True:
        try:
            ancestor.lstat()  # other answers than "there is none" are the reason why nothing can be made here
        except (FileNotFoundError, NotADirectoryError):
            ancestor = ancestor.parent
            continue
        break
    if not ancestor.is_dir():
        raise NotADirectoryError(f"{str(ancestor)!r} is {'a file' if ancestor.is_file() else 'no directory'}")
    longest = os.pathconf(ancestor, "PC_NAME_MAX")
    for part in directory.relative_to(ancestor).parts:
        if len(os.fsencode(part)) > longest:
            raise NotADirectoryError(f"a name has more than {longest} bytes")
    with tempfile.TemporaryFile(dir=ancestor) as file:
        file.write(b"room")
        file.flush()


def _try_store(path: epath.Path) -> None:
    store, root = _store(path)
    if store.isfile(root):
        raise NotADirectoryError("it is a file")
    probe = f"{root}/.writable.{uuid.uuid4().hex}"
    store.pipe_file(probe, b"room")
    store.rm_file(probe)


@contextmanager
def written_locally(target: AnyPath | str) -> Iterator[Path]:
    """A context with a local path at which a file or a directory is made; on a store, it is copied at the end.

    Raises:
      UserError: the store refuses it.
    """
    path = as_path(target)
    if not is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="transnormer.") as scratch:
        local = Path(scratch) / path.name
        yield local
        try:
            upload(local, path) if local.is_dir() else path.write_bytes(local.read_bytes())
        except Exception as error:  # of any store
            raise UserError(f"{str(path)!r} cannot be written ({reason(error)}): {remedy(error)}.") from error


class Mirror:
    """Copies the files of a local directory to a store, in the background; a context that copies all at its end.

    A store takes whole files only: what grows line by line is written locally and copied now and then.
    """

    def __init__(self, directory: Path, target: AnyPath, *, every_seconds: float = 30.0):
        """Begins; files that have changed are copied every so often."""
        self._directory, self._target, self._every = directory, target, every_seconds
        self._copied: dict[Path, tuple[int, int]] = {}
        self._wanted, self._closed = threading.Event(), False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def copy_soon(self) -> None:
        """Copies what has changed without waiting for its time."""
        self._wanted.set()

    def close(self) -> None:
        """Copies what has changed.

        Raises:
          UserError: the store refuses it.
        """
        self._closed = True
        self._wanted.set()
        self._thread.join()
        try:
            self._copy()
        except Exception as error:
            raise UserError(f"{str(self._target)!r} cannot be written ({reason(error)}): {remedy(error)}.") from error

    def _run(self) -> None:
        while True:
            self._wanted.wait(self._every)
            self._wanted.clear()
            if self._closed:
                return
            try:
                self._copy()
            except Exception as error:  # the next time, or the end, tries again
                print(f"warning: {str(self._target)!r} was not written ({reason(error)}).", file=sys.stderr)

    def _copy(self) -> None:
        store, root = _store(self._target)
        for file in sorted(self._directory.rglob("*")):
            stat = file.stat()
            state = (stat.st_size, stat.st_mtime_ns)
            if file.is_file() and self._copied.get(file) != state:
                store.pipe_file(f"{root}/{file.relative_to(self._directory).as_posix()}", file.read_bytes())
                self._copied[file] = state


def _store(path: AnyPath) -> tuple[Any, str]:
    """The file system of fsspec, and the path in it."""
    store, root = fsspec.core.url_to_fs(str(path))
    return store, root.rstrip("/")


def _version(info: Mapping[str, Any]) -> str:
    return str(next((info[key] for key in ("etag", "ETag", "md5Hash", "updated", "LastModified") if key in info), ""))


def _download(store: Any, root: str, files: list[str], target: Path) -> None:
    pairs = {name: target / name.removeprefix(root).lstrip("/") if name != root else target for name in files}
    for local in pairs.values():
        local.parent.mkdir(parents=True, exist_ok=True)
    store.get(list(pairs), [str(local) for local in pairs.values()])


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with open(file, "w") as opened:
        with suppress(OSError):  # a file system without locks: both copy, and one of the copies is kept
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield


@contextmanager
def report_write_errors(workdir: AnyPath) -> Iterator[None]:
    """A context in which the files of a workdir are written.

    Raises:
      UserError: the disk or the store refuses them.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of any store
        if not is_remote(workdir) and not isinstance(error, OSError):
            raise
        mend = remedy(error) if is_remote(workdir) else "correct that, or make room, and run the same command"
        raise UserError(f"{str(workdir)!r} cannot be written ({reason(error)}): {mend}.") from error


def reason(error: BaseException) -> str:
    """Returns what a disk or a store answered, in one line."""
    if isinstance(error, FileNotFoundError) and not error.strerror:
        return "no such bucket, file or directory"
    strerror = getattr(error, "strerror", None)
    return strerror or first_line(error)


def remedy(error: BaseException) -> str:
    """Returns what to do about an answer of a store, as the end of a sentence."""
    if isinstance(error, FileNotFoundError):
        return "check its name and that the bucket exists"
    return "check the name, the network, and that this machine has credentials that may write there"
