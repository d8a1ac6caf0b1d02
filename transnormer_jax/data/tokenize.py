"""Tokenises a corpus part by part. What a killed run has finished stays, and the next goes on.

A part is read as a stream and written in shards of some 16 MB of text. A shard is what a killed process loses. The
result does not depend on who wrote which part, or when.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol

import numpy as np
import numpy.typing as npt

from transnormer_jax.data.bad_records import BadRecord, InvalidBytes, Problem, Problems
from transnormer_jax.data.corpus import Corpus
from transnormer_jax.data.tokenized import Manifest, Shard, damaged_shards, shard_file
from transnormer_jax.errors import UserError
from transnormer_jax.storage import publish

_SHARD_BYTES = 1 << 24
# Characters per call of the tokenizer: enough to keep every core busy, little enough to forget.
_BATCH_CHARACTERS = 1 << 22
# Of a part, before it is given up: a wrong name of a field should not take hours to be found.
_MOST_BAD_RECORDS = 1000

Document = tuple[int, str]
"""Key and text."""


class Coder(Protocol):
    """What makes tokens of texts: a `Tokenizer`, or another code of the same form."""

    vocab_size: int
    fingerprint: str

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.integer]]:
        """Returns the ids of each text, [tokens]."""


@dataclasses.dataclass(frozen=True)
class Tokenization:
    """The work of making a directory of shards from a corpus. Until it is whole, it is `incomplete.NAME` beside it.

    Attributes:
      corpus: the documents.
      coder: encodes them; no special tokens are stored.
      directory: on a local or shared disk; its name must tell this corpus and coder from all others.
      bad_records: "stop": those of the whole corpus are one error in the end; "skip": they are left out.
    """

    corpus: Corpus
    coder: Coder
    directory: Path
    bad_records: str = "stop"

    def run(self, workers: int = 1, on_part: Callable[[], object] = lambda: None) -> None:
        """Makes the directory, unless it exists. Of racing runs one wins.

        Args:
          workers: processes; with less than 2, and for a corpus of one part, this one does the work.
          on_part: called after each part, if this process does the work.

        Raises:
          UserError: there are no tokens, or the disk refuses them; or there are bad records, and they are not skipped.
        """
        if self.directory.exists():
            return
        try:
            if workers < 2 or len(self.corpus) == 1:
                for part in range(len(self.corpus)):
                    self.write_part(part)
                    on_part()
            else:
                from transnormer_jax.data.engine import EachTask, run_stage

                # What is finished is known by its records: the engine's own would outlive a directory that is deleted.
                logs = Path(tempfile.mkdtemp(prefix="tokenise."))
                step = EachTask("tokenise", self.write_part)
                run_stage("tokenise", [step], len(self.corpus), workers, logs / "log")
                shutil.rmtree(logs)
            self.publish()
        except (OSError, UserError) as error:
            if self.directory.exists():
                return  # another run finished first, and took the shards from under this one
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"cannot write tokens to {str(self.directory)!r} ({error}): choose another data_dir."
            ) from error

    def write_part(self, part: int) -> None:
        """Writes the shards of a part that a run before this one has not finished.

        Raises:
          UserError: a file cannot be read; or more than 1,000 of its records, and they are not skipped.
        """
        self._incomplete.mkdir(parents=True, exist_ok=True)
        items, skipped, problems = self.corpus.read(part), 0, Problems()
        for chunk in itertools.count():
            record = self._incomplete / f"{_stem(part, chunk)}.json"
            try:
                written = _Chunk.read(record)
                skipped += written.items
            except FileNotFoundError:
                next(itertools.islice(items, skipped, skipped), None)
                skipped = 0
                written = self._write_chunk(items, part, chunk, problems)
                with _appearing(record) as path:
                    written.write(path)
            if written.last:
                return
            problems = problems.merged(written.problems)

    def complete_part(self, part: int) -> None:
        """Writes a part, and the directory if it was the last: for processes that do not wait for each other."""
        self.write_part(part)
        if self.progress() == len(self.corpus):
            self.publish()

    def progress(self) -> int:
        """How many parts are complete."""
        return sum(self._chunks_of(part) is not None for part in range(len(self.corpus)))

    def publish(self) -> None:
        """Makes the directory of the parts, which must be complete.

        Raises:
          UserError: there are no tokens; or there are bad records, and they are not skipped.
        """
        if self.directory.exists():
            return
        chunks = [one for part in range(len(self.corpus)) for one in self._chunks_of(part) or ()]
        problems = functools.reduce(Problems.merged, (chunk.problems for _, chunk in chunks), Problems())
        if problems.bad and self.bad_records == "stop":
            raise problems.error()
        found = [(stem, chunk.shard) for stem, chunk in chunks if chunk.shard]
        shards = tuple(shard for _, shard in found)
        if not any(shard.tokens for shard in shards):
            shutil.rmtree(self._incomplete, ignore_errors=True)
            if problems.bad:
                raise problems.error()
            raise UserError(
                "there is no text to tokenise: give files with more than white space in them, and conversations with "
                "an answer that fits into a row of config.sequence_length."
            )

        # Links, so that another run which is about to finish still finds what it has written.
        def write(written: Path) -> None:
            for number, (stem, _) in enumerate(found):
                for kind in ("tokens", "index"):
                    _link(self._incomplete / f"{stem}.{kind}", shard_file(written, number, kind))
            Manifest(self.coder.fingerprint, self._dtype.name, shards, problems.notes()).write(written)

        publish(self.directory, write)
        shutil.rmtree(self._incomplete, ignore_errors=True)

    def repair(self) -> list[int]:
        """Writes the damaged shards of a finished directory again, and returns their numbers.

        Raises:
          UserError: what comes out is not what the manifest says, because the texts or the coder have changed.
        """
        manifest, damaged = Manifest.read(self.directory), damaged_shards(self.directory)
        repaired = self.directory.with_name(f"repaired.{self.directory.name}")
        again = dataclasses.replace(self, directory=repaired, bad_records="skip")
        for part in sorted({manifest.shards[number].part for number in damaged}):
            numbers = [number for number, shard in enumerate(manifest.shards) if shard.part == part]
            written = list[tuple[str, Shard]]()
            if part < len(self.corpus):
                again.write_part(part)
                written = [(stem, chunk.shard) for stem, chunk in again._chunks_of(part) or () if chunk.shard]
            if [shard for _, shard in written] != [manifest.shards[number] for number in numbers]:
                raise UserError(
                    f"shard {min(set(numbers) & set(damaged))} of {str(self.directory)!r} cannot be written as it was: "
                    "the dataset or the tokenizer has changed. Delete the directory and prepare it again."
                )
            for number, (stem, _) in zip(numbers, written, strict=True):
                for kind in ("tokens", "index"):
                    os.replace(again._incomplete / f"{stem}.{kind}", shard_file(self.directory, number, kind))
        shutil.rmtree(again._incomplete, ignore_errors=True)
        return damaged

    @property
    def _incomplete(self) -> Path:
        return self.directory.with_name(f"incomplete.{self.directory.name}")

    @property
    def _dtype(self) -> np.dtype:
        return np.dtype(np.uint16 if self.coder.vocab_size <= 1 << 16 else np.uint32)

    def _chunks_of(self, part: int) -> "list[tuple[str, _Chunk]] | None":
        """The names and records of the chunks of a part; None if it is not complete."""
        found = list[tuple[str, _Chunk]]()
        for number in itertools.count():
            try:
                chunk = _Chunk.read(self._incomplete / f"{_stem(part, number)}.json")
            except FileNotFoundError:
                return None
            found.append((_stem(part, number), chunk))
            if chunk.last:
                return found
        raise AssertionError

    def _write_chunk(self, items: Iterator[Document | Problem], part: int, number: int, before: Problems) -> "_Chunk":
        """Writes one shard, if there are documents left."""
        problems, read = Problems(), 0

        def documents() -> Iterator[Document]:
            nonlocal read
            for item in items:
                read += 1
                if not isinstance(item, BadRecord | InvalidBytes):
                    yield item
                    continue
                problems.add(item)
                if self.bad_records == "stop" and before.bad + problems.bad > _MOST_BAD_RECORDS:
                    raise before.merged(problems).error(at_least=True)

        written, shard = 0, None
        with contextlib.ExitStack() as files:
            writer: _ShardWriter | None = None
            for batch in _batches(documents()):
                writer = writer or files.enter_context(
                    _ShardWriter(self._incomplete / _stem(part, number), self._dtype)
                )
                writer.add(self.coder.encode_batch([text for _, text in batch]), batch)
                written += sum(len(text) for _, text in batch)
                if written >= _SHARD_BYTES:
                    break
            if writer:
                shard = writer.shard(part)
        return _Chunk(shard, read, written < _SHARD_BYTES, problems)


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """What has been read of a part at one time, as a record beside the shard that it became.

    Attributes:
      shard: None if there was no document.
      items: how many the corpus gave: documents and problems.
      last: of the part.
      problems: with the texts.
    """

    shard: Shard | None
    items: int
    last: bool
    problems: Problems

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "_Chunk":
        values = json.loads(path.read_text())
        shard = Shard(**values["shard"]) if values["shard"] else None
        return cls(shard, values["items"], values["last"], Problems.from_json(values["problems"]))


class _ShardWriter:
    """Writes the two files of a shard, which have their names once they are whole."""

    def __init__(self, stem: Path, dtype: np.dtype):
        self._stem, self._dtype = stem, dtype
        self._digest, self._index = hashlib.sha256(), list[tuple[int, int, int]]()
        self._files = contextlib.ExitStack()

    def __enter__(self) -> "_ShardWriter":
        path = self._files.enter_context(_appearing(self._stem.with_name(f"{self._stem.name}.tokens")))
        self._tokens: IO[bytes] = self._files.enter_context(open(path, "wb"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)
        if error is None:
            with _appearing(self._stem.with_name(f"{self._stem.name}.index")) as path:
                path.write_bytes(self._index_bytes())

    def add(self, tokens: Sequence[npt.NDArray[np.integer]], documents: Sequence[Document]) -> None:
        content = np.concatenate(tokens).astype(self._dtype).tobytes()
        self._digest.update(content)
        self._tokens.write(content)
        self._index += [(len(ids), len(text.encode()), key) for ids, (key, text) in zip(tokens, documents, strict=True)]

    def shard(self, part: int) -> Shard:
        lengths, num_bytes, _ = zip(*self._index, strict=True)
        index = hashlib.sha256(self._index_bytes()).hexdigest()
        return Shard(part, len(lengths), sum(lengths), sum(num_bytes), self._digest.hexdigest(), index)

    def _index_bytes(self) -> bytes:
        return np.array(self._index, np.uint64).tobytes()


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the name `path` when it is whole."""
    # Process ids would not do: in containers on a shared disk they are the same.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    yield partial
    os.replace(partial, path)


def _stem(part: int, chunk: int) -> str:
    return f"{part:05}.{chunk:05}"


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # Not every file system has links.
        shutil.copyfile(source, target)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch, characters = list[Document](), 0
    for document in documents:
        batch.append(document)
        characters += len(document[1])
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
