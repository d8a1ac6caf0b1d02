"""Tokenising a corpus shard by shard, in parallel: what a killed run has finished stays, and the next goes on there."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import pickle
import shutil
import signal
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from absl import logging

from transnormer_jax.data.tokenized import (
    Manifest,
    Shard,
    TokenizedDocuments,
    damaged_shards,
    open_tokenized,
    shard_file,
)
from transnormer_jax.errors import UserError
from transnormer_jax.storage import publish

# A shard is what a killed run may lose; many small files would burden every later start.
_SHARD_BYTES = 1 << 24
_MOST_SHARDS = 1024
# Characters per call of the tokenizer: enough to keep every core busy, little enough to forget.
_BATCH_CHARACTERS = 1 << 22


class Coder(Protocol):
    """What makes tokens of texts: a `Tokenizer`, or another code of the same form."""

    vocab_size: int
    fingerprint: str

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.integer]]:
        """Returns the ids of each text, [tokens]."""


class Texts(Protocol):
    """A corpus that can be read from any document on; for several processes, one that can be pickled.

    Attributes:
      num_bytes: of all documents, roughly; only the size of the shards rests on it.
    """

    num_bytes: int

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Iterator[str]:
        """Yields documents `start` to `stop`."""


def tokenize(
    texts: Texts,
    coder: Coder,
    directory: Path,
    *,
    workers: int = 0,
    on_shard: Callable[[Shard], None] = lambda shard: None,
) -> TokenizedDocuments:
    """Returns the tokenised `texts`, from `directory` if it exists, else written there first.

    The directory appears at once and whole. Until then the shards lie in `incomplete.NAME` beside it, from which a run
    after a killed one takes what is finished. Of racing runs one wins.

    Args:
      texts: the documents; not read if `directory` exists.
      coder: encodes them; no special tokens are stored.
      directory: on a local disk; its name must tell this corpus and tokenizer from all others.
      workers: processes; with less than 2, and for a corpus of one shard, this one does the work.
      on_shard: is told of every shard in order, also of those that were there already.

    Raises:
      UserError: there are no tokens, the disk refuses them, or a shard has been cut short.
    """
    try:
        if not directory.exists():
            _write_all(texts, coder, directory, workers, on_shard)
    except OSError as error:
        # Unless another run finished first, and took the shards from under this one.
        if not directory.exists():
            raise UserError(f"cannot write tokens to {str(directory)!r} ({error}): choose another data_dir.") from error
    return open_tokenized(directory)


def repair(texts: Texts, coder: Coder, directory: Path) -> list[int]:
    """Writes the damaged shards of a finished directory again, and returns their numbers.

    Raises:
      UserError: what comes out is not what the manifest says, because the texts or the tokenizer have changed.
    """
    manifest, damaged = Manifest.read(directory), damaged_shards(directory)
    ranges = _ranges(texts)
    for number in damaged:
        again = _Job(texts, coder, directory, ranges).write(number) if number < len(ranges) else None
        if again != manifest.shards[number]:
            raise UserError(
                f"shard {number} of {str(directory)!r} cannot be written as it was: the dataset or the tokenizer has "
                "changed. Delete the directory and prepare it again."
            )
    return damaged


def _write_all(texts: Texts, coder: Coder, directory: Path, workers: int, on_shard: Callable[[Shard], None]) -> None:
    incomplete = directory.with_name(f"incomplete.{directory.name}")
    incomplete.mkdir(parents=True, exist_ok=True)
    job = _Job(texts, coder, incomplete, _ranges(texts))
    shards = list[Shard]()
    for shard in _in_order(job, workers):
        on_shard(shard)
        shards.append(shard)
    manifest = Manifest(coder.fingerprint, job.dtype.name, tuple(shards))
    if not manifest.tokens:
        shutil.rmtree(incomplete)
        raise UserError("the split has no tokens: choose another split, or a corpus with text in it.")

    # Links, so that another run which is about to finish still finds what it has written.
    def write(written: Path) -> None:
        for number, kind in itertools.product(range(len(shards)), ("tokens", "index")):
            _link(shard_file(incomplete, number, kind), shard_file(written, number, kind))
        manifest.write(written)

    publish(directory, write)
    shutil.rmtree(incomplete, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # Not every file system has links.
        shutil.copyfile(source, target)


def _ranges(texts: Texts) -> list[tuple[int, int]]:
    """The documents of each shard: a function of the corpus alone, so that a run after a killed one cuts alike."""
    count = max(1, min(-(-texts.num_bytes // _SHARD_BYTES), _MOST_SHARDS, len(texts)))
    borders = [number * len(texts) // count for number in range(count + 1)]
    return list(itertools.pairwise(borders))


def _in_order(job: "_Job", workers: int) -> Iterator[Shard]:
    if workers < 2 or len(job.ranges) == 1:
        yield from map(job.shard, range(len(job.ranges)))
        return
    workers = min(workers, len(job.ranges))
    spawn = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, spawn, _begin_worker, (pickle.dumps(job), workers))
    try:
        yield from pool.map(_shard_of_worker, range(len(job.ranges)))
    except BrokenProcessPool as error:
        raise UserError(
            "a worker died, perhaps for want of memory: run again with fewer workers; finished shards stay."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@dataclasses.dataclass(frozen=True)
class _Job:
    texts: Texts
    coder: Coder
    directory: Path
    ranges: Sequence[tuple[int, int]]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint16 if self.coder.vocab_size <= 1 << 16 else np.uint32)

    def shard(self, number: int) -> Shard:
        """The shard as a run before this one left it, else written."""
        record = shard_file(self.directory, number, "json")
        with contextlib.suppress(FileNotFoundError):
            return Shard(**json.loads(record.read_text()))
        shard = self.write(number)
        with _appearing(record) as file:
            file.write_text(json.dumps(dataclasses.asdict(shard)))
        return shard

    def write(self, number: int) -> Shard:
        index = list[tuple[int, int]]()
        digest = hashlib.sha256()
        with (
            _appearing(shard_file(self.directory, number, "tokens")) as path,
            open(path, "wb") as file,
        ):
            for batch in _batches(self.texts.read(*self.ranges[number])):
                documents = self.coder.encode_batch(batch)
                content = np.concatenate(documents).astype(self.dtype).tobytes()
                digest.update(content)
                file.write(content)
                index += ((len(tokens), len(text.encode())) for tokens, text in zip(documents, batch, strict=True))
        content = np.array(index, np.int64).tobytes()
        with _appearing(shard_file(self.directory, number, "index")) as path:
            path.write_bytes(content)
        return Shard(
            documents=len(index),
            tokens=sum(tokens for tokens, _ in index),
            bytes=sum(num_bytes for _, num_bytes in index),
            sha256=digest.hexdigest(),
            index_sha256=hashlib.sha256(content).hexdigest(),
        )


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the name `path` when it is whole."""
    # Process ids would not do: in containers on a shared disk they are the same.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    yield partial
    os.replace(partial, path)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


_worker_job: _Job


def _begin_worker(job: bytes, workers: int) -> None:
    global _worker_job
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches workers too: none prints a traceback
    logging.set_verbosity(logging.ERROR)  # TFDS tells of every dataset that it opens, as unpickling does.
    _worker_job = pickle.loads(job)
    # The threads of the `tokenizers` library: the processes share the cores.
    os.environ["RAYON_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    # A killed parent closes no queue: its workers would wait for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _shard_of_worker(number: int) -> Shard:
    return _worker_job.shard(number)
