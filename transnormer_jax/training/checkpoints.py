"""Checkpoints: Orbax, asynchronous and atomic, with parameters, optimizer state and metadata as separate items.

A checkpoint's metadata holds the architecture, the tokenizer's fingerprint and the optimizer's name, to refuse those of
another run, the position in the data, and checksums of all arrays. The loop decides when to save, since all processes
must decide alike and Orbax would ask them by a device collective in every step; Orbax's policies decide what is kept.
"""

import errno
import functools
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from orbax.checkpoint import checkpoint_managers as policies

from transnormer_jax import storage
from transnormer_jax.distributed import multihost
from transnormer_jax.errors import UserError, first_line
from transnormer_jax.log import log
from transnormer_jax.training.checksums import checksums, verify
from transnormer_jax.training.config import Config
from transnormer_jax.training.identity import check_identity, model_identity
from transnormer_jax.training.reading import each_for_itself, newest_readable
from transnormer_jax.training.step import TrainState

# What a full, limited, read-only or failing disk answers; TensorStore passes on the words alone.
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)

_POLL_SECONDS = 0.01


class UnwritableError(UserError):
    """The file system refuses a checkpoint."""


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints/`; a context that finishes what is under way at its end.

    Every method is called by all processes alike.
    """

    def __init__(
        self, workdir: storage.AnyPath, *, config: Config, tokenizer: str, losses: Mapping[int, float] | None = None
    ):
        """Opens the directory, and makes it if need be.

        Args:
          tokenizer: a fingerprint.
          losses: held-out losses of former starts of the run, by step.
        """
        self._directory = storage.absolute(workdir) / "checkpoints"
        self._config, self._tokenizer = config, tokenizer
        self._losses = dict(losses or {})
        _silence_repetitions()
        _wait_without_devices()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_preservation(config, self._losses),
            create=True,
        )
        with self._report_write_errors("made"):
            self._manager = _Manager(self._directory, options=options)
        self._newest = self._complete = -1
        self._under_way, self._save_began = False, time.perf_counter()

    def save(self, state: TrainState, *, rows: int) -> None:
        """Begins to save `state`, which may be donated at once, and the number of rows of data consumed.

        Raises:
          UnwritableError: the disk refuses this checkpoint, or refused the one before in the background.
        """
        metadata = {
            "model": model_identity(self._config),
            "tokenizer": self._tokenizer,
            "optimizer": self._config.optimizer.name,
            "rows": rows,
            "checksums": {"params": checksums(state.params), "opt_state": checksums(state.opt_state)},
        }
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            opt_state=ocp.args.StandardSave(_as_tree(state.opt_state)),
            metadata=ocp.args.JsonSave(metadata),
        )
        step = int(state.step)
        self.wait()  # for the one before
        self._save_began = time.perf_counter()
        with self._report_write_errors("written"):
            self._manager.save(step, args=items, force=True)
        self._newest, self._under_way = step, True

    @property
    def newest(self) -> int:
        """The step that was saved or restored last, -1 if there is none."""
        return self._newest

    @property
    def complete(self) -> int:
        """The newest step that is known to be on disk, -1 if there is none."""
        return self._complete

    def wait(self) -> None:
        """Returns once everything is written.

        Raises:
          UnwritableError: as `save`.
        """
        with self._report_write_errors("written"):
            while self._under_way and self._manager.is_saving_in_progress() and self._manager.failure is None:
                time.sleep(_POLL_SECONDS)
            if self._manager.failure is not None:
                raise self._manager.failure
            self._manager.wait_until_finished()
        if self._under_way:  # not earlier: Orbax calls back before it gives a checkpoint its final name
            self._under_way, self._complete = False, self._newest
            log(f"checkpoint {self._newest} is complete after {time.perf_counter() - self._save_began:.1f} s")

    def check(self) -> None:
        """Says so if the save in the background has ended since the last call.

        Raises:
          UnwritableError: as `save`.
        """
        if self._manager.failure is not None or (self._under_way and not self._manager.is_saving_in_progress()):
            self.wait()

    def evaluated(self, losses: Mapping[int, float]) -> None:
        """Notes held-out losses by step, by which the best checkpoints are kept."""
        self._losses |= losses

    def save_in_emergency(self, state: TrainState, *, rows: int) -> None:
        """Saves `state` while an exception is under way, if that can still be done; never raises.

        Not on several processes: a save takes all of them, and the others may know nothing of the exception.
        """
        if jax.process_count() > 1 or any(x.is_deleted() for x in jax.tree.leaves(state)):
            return
        try:
            step = int(jax.block_until_ready(state).step)
            if step in (0, self._newest):
                return
            self.save(state, rows=rows)
            self._manager.wait_until_finished()
            print(f"saved step {step} before leaving", file=sys.stderr)
        except (Exception, KeyboardInterrupt) as error:  # the exception under way says more
            print(f"warning: nothing could be saved in emergency ({first_line(error)}).", file=sys.stderr)

    def restore(self, abstract: TrainState) -> tuple[TrainState, int] | None:
        """Returns the newest state that can be read and its rows of data, or None in a new run.

        A checkpoint that cannot be read, by one process at least, is set aside in `workdir/broken_checkpoints/`, and
        the one before is taken.

        Args:
          abstract: shapes, dtypes and shardings.

        Raises:
          UserError: the checkpoints are another model's or another optimizer's, none of them can be read, or the
            workdir is that of a converted model.
        """
        found = newest_readable(
            self._directory, self._manager.all_steps(), lambda step: self._restore_step(step, abstract), _check
        )
        if found is None:
            return None
        self._set_aside(found.broken)
        log(f"resumed from checkpoint {found.step}")
        self._newest = self._complete = found.step
        state, metadata = found.content
        return state, metadata["rows"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if error is None:
            with self._report_write_errors("written"):
                self._manager.close()
        elif jax.process_count() == 1 and not isinstance(error, UnwritableError | KeyboardInterrupt):
            try:
                self._manager.close()
            except Exception as other:
                print(f"warning: the last checkpoint was not finished ({first_line(other)}).", file=sys.stderr)
        # Else it would wait for processes that may be gone; what is half written has a name of its own.

    def _restore_step(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        directory, workdir = self._directory / str(step), self._directory.parent
        if step == 0 and not (directory / "metadata").exists():  # `save_params`; a run saves after its first step
            raise UserError(
                f"{str(workdir)!r} holds a converted model, not a run: begin one with --config.init_from={workdir} and "
                "another --workdir."
            )
        own = each_for_itself()
        json_handler = ocp.JsonCheckpointHandler(multiprocessing_options=own)
        with ocp.Checkpointer(json_handler, multiprocessing_options=own) as checkpointer:
            metadata = checkpointer.restore(directory / "metadata")
        check_identity(metadata["model"], self._config)
        if metadata["tokenizer"] != self._tokenizer:
            raise UserError(
                "the workdir's model was trained with another tokenizer: use another --workdir, or that tokenizer."
            )
        ours = self._config.optimizer.name
        theirs = metadata.get("optimizer", ours)  # older checkpoints do not name it
        if theirs != ours:
            raise UserError(
                f"the workdir holds the state of optimizer {theirs!r}, config.optimizer.name is {ours!r}: set it to "
                f"{theirs!r}, or begin a new run with these parameters, by --config.init_from={workdir} and another "
                "--workdir."
            )
        with ocp.StandardCheckpointer(multiprocessing_options=own) as checkpointer:
            params = checkpointer.restore(directory / "params", abstract.params)
            leaves = checkpointer.restore(directory / "opt_state", _as_tree(abstract.opt_state))
        opt_state = jax.tree.unflatten(jax.tree.structure(abstract.opt_state), leaves)
        count = jax.make_array_from_callback(
            (), abstract.step.sharding, lambda _: np.asarray(step, abstract.step.dtype)
        )
        return TrainState(count, params, opt_state), metadata

    def _set_aside(self, broken: Mapping[int, str]) -> None:
        if not broken:
            return
        for step, reason in broken.items() if jax.process_index() == 0 else ():
            aside = self._directory.parent / "broken_checkpoints" / str(step)
            while aside.exists():
                aside = aside.with_name(aside.name + "_")
            storage.move(self._directory / str(step), aside)
            log(f"warning: checkpoint {step} is broken ({reason}); it is now in {aside}")
        multihost.barrier("setting broken checkpoints aside")
        self._manager.reload()

    @contextmanager
    def _report_write_errors(self, done: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = _write_error(error)
            if not reason and storage.is_remote(self._directory) and not isinstance(error, UserError):
                reason = first_line(error)  # stores have too many answers for a list
            if not reason:
                raise
            raise UnwritableError(
                f"a checkpoint could not be {done} in {str(self._directory)!r} ({reason}): correct that, or make room, "
                "and run the same command to resume from the newest one there, which is unharmed."
            ) from error


class _Manager(ocp.CheckpointManager):
    """Tells at once that this process failed to write: Orbax first waits for the others, which wait for this one."""

    failure: Exception | None = None

    def _wait_for_checkpointers(self) -> None:  # in the thread of the save
        try:
            super()._wait_for_checkpointers()
        except Exception as error:
            self.failure = error
            raise


class _Best(policies.PreservationPolicy):
    """Keeps the checkpoints of the lowest held-out losses; Orbax's own wants to know them when it saves."""

    def __init__(self, losses: Mapping[int, float], count: int):
        self._losses, self._count = losses, count

    def should_preserve(
        self, checkpoints: Sequence[policies.PolicyCheckpointInfo], *, context: policies.PreservationContext
    ) -> Sequence[bool]:
        known = [one.step for one in checkpoints if one.step in self._losses]
        best = set(sorted(known, key=self._losses.__getitem__)[: self._count])
        return [one.step in best for one in checkpoints]


def _preservation(config: Config, losses: Mapping[int, float]) -> policies.PreservationPolicy:
    kept: list[policies.PreservationPolicy] = [policies.LatestN(config.keep_checkpoints)]
    kept.append(_Best(losses, config.keep_best))
    if config.keep_every:
        kept.append(policies.EveryNSteps(config.keep_every))
    return policies.AnyPreservationPolicy(kept)


def _wait_without_devices() -> None:
    # By default Orbax's barriers are device collectives, which give up after 30 s on a CPU: a slow store needs more.
    flags.FLAGS.set_default("experimental_orbax_use_distributed_barrier", True)


@functools.cache  # once in a process
def _silence_repetitions() -> None:
    """Keeps tracebacks off stderr that repeat what is raised and printed in one sentence."""
    # Orbax logs an error in each thread that sees it.
    logging.getLogger("absl").addFilter(_is_no_repetition)
    # So does asyncio for the writes beside the one whose error Orbax passes on.
    logging.getLogger("asyncio").addFilter(lambda record: "orbax" not in record.getMessage())
    # Reads that are under way when another one fails come back to an event loop that is closed.
    previous = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            previous(unraisable)

    sys.unraisablehook = hook


def _is_no_repetition(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


def _check(content: tuple[TrainState, Mapping[str, Any]]) -> None:
    state, metadata = content
    saved = metadata.get("checksums", {})  # older checkpoints have none
    verify(state.params, saved.get("params"))
    verify(state.opt_state, saved.get("opt_state"))


def _as_tree(opt_state: Any) -> list[Any]:
    # As a list of arrays: optax's own state types may change between versions, the order of their leaves seldom does.
    return jax.tree.leaves(opt_state)


def _write_error(error: BaseException | None) -> str:
    """In words, what a file system answered, if that is what went wrong; else ""."""
    while error is not None:
        for words in map(os.strerror, _WRITE_ERRORS):
            if words in str(error):
                return words
        error = error.__cause__ or error.__context__
    return ""
