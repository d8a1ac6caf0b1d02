"""What generation costs, by the length of the context: time to the first token, tokens per second, bytes remembered.

A TransNormerLLM, by the functions that `Generator` calls; a softmax Transformer of as many parameters with a KV cache
(`benchmarks/inference_subjects.py` says how they are driven); and, where it is installed, the released PyTorch code on
the CPU, in processes of its own, once before and twice after the others, of which the fastest counts; at batch 1 and
the first context. Weights are random: speed does not depend on them.

- Times are medians. A prompt is read whole where that promises to take less than --read_seconds; that is the time to
  the first token.
- Otherwise a state is placed at the end of the context instead: that of a shorter prompt with its position changed, or
  a KV cache of zeros. A decoding step does the same work on it. The rows of the record say "read" or "placed".
- A batch is that text several times over. Blocks at all contexts are timed in turn where memory allows, so that what
  else the machine does strikes all alike. What would take too long or too much memory is not run, and its row says so.

    python -m benchmarks.inference
    python -m benchmarks.inference --reference_python=VENV/bin/python --reference_code=TNL-MoE/smoe/models/tnl

Writes a JSON file and a plot. The last line on stdout is a summary in JSON.
"""

import dataclasses
import json
import os
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import inference_reference
from benchmarks.environment import hardware
from benchmarks.inference_subjects import KINDS, MODELS, Subject, reference_fields
from benchmarks.measure import time_calls, time_in_turn
from benchmarks.plot import Panel, save_panels
from benchmarks.processes import last_words
from benchmarks.record import check_known, check_positive, main, prepare, write
from transnormer_jax.errors import UserError

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
      models: sizes, "tiny" or "100m".
      kinds: "linear" or "softmax".
      batch_sizes: numbers of texts written at once.
      contexts: numbers of tokens before those that are written.
      dtype: of weights and computation; states of linear attention are float32 always.
      block_size: tokens that one call writes, as `Generator.generate` does.
      seconds: how long the calls at each context are repeated, three times at least.
      read_seconds: a prompt is read whole if that promises to take less.
      max_call_seconds: a call is left out if, judged by the bytes of the state before, it would take longer.
      max_gigabytes: states that need more are left out; 10^9 bytes.
      reference_python: a Python with torch, transformers 4 and einops; "" leaves the reference out.
      reference_code: directory of the released code, with `modeling_transnormer.py`.
    """

    models: tuple[str, ...] = tuple(MODELS)
    kinds: tuple[str, ...] = tuple(KINDS)
    batch_sizes: tuple[int, ...] = (1, 8, 64)
    contexts: tuple[int, ...] = (1024, 4096, 16384, 65536, 262144, 1048576)
    dtype: str = "float32"
    block_size: int = 16
    seconds: float = 1.0
    read_seconds: float = 10.0
    max_call_seconds: float = 8.0
    max_gigabytes: float = 5.0
    reference_python: str = ""
    reference_code: str = ""

    def __post_init__(self):
        check_positive(self)
        check_known("models", self.models, MODELS)
        check_known("kinds", self.kinds, KINDS)
        check_known("dtype", [self.dtype], ("float32", "bfloat16"))
        if bool(self.reference_python) != bool(self.reference_code):
            raise UserError("give both of --reference_python and --reference_code, or neither.")
        if self.reference_python and self.dtype != "float32":
            raise UserError(f"the reference computes in float32, not {self.dtype}: leave it out, or --dtype.")


def run(settings: Settings, output: Path, command_line: str) -> dict[str, Any]:
    """Measures, prints a line for each row, writes `output` and at last the plot beside it, and returns the summary."""
    prepare(output)
    contexts = tuple(sorted(set(settings.contexts)))
    if settings.reference_python and jax.default_backend() != "cpu":
        raise UserError("the reference is timed on the CPU: leave it out, or set JAX_PLATFORMS=cpu.")
    # Where the reference lies on this machine is nobody's business.
    paths = {name: getattr(settings, name) for name in ("reference_python", "reference_code")}
    for path in filter(None, paths.values()):
        command_line = command_line.replace(path, Path(path).name)
    named = dataclasses.replace(settings, **{name: Path(path).name for name, path in paths.items()})
    measured = settings.models if settings.reference_python else ()
    runs = {model: [_reference(model, contexts[0], settings)] for model in measured}
    rows, parameters = list[Row](), dict[str, dict[str, int]]()

    def save() -> dict[str, Any]:
        reference = {model: _fastest(found) for model, found in runs.items()}
        summary = {model: _summary(model, rows, reference.get(model), contexts) for model in settings.models}
        content = {"parameters": parameters, "rows": rows, "reference": reference, "summary": summary}
        return {"environment": write(output, command_line, named, content), "summary": summary}

    for model in settings.models:
        parameters[model] = {}
        for kind in settings.kinds:
            subject = KINDS[kind](MODELS[model], settings.dtype, settings.block_size)
            parameters[model][kind] = subject.num_parameters
            for found in _measure(subject, contexts, settings):
                row = {"model": model, "kind": kind, **found}
                print(json.dumps(row), flush=True)
                rows.append(row)
            save()
    for model in measured:
        runs[model] += [_reference(model, contexts[0], settings) for _ in range(2)]
    saved = save()
    save_panels(
        list(_panels(rows, settings)),
        title=f"Generation on {hardware(saved['environment'])}, {settings.dtype}",
        xlabel="tokens of context",
        path=output.with_suffix(".png"),
    )
    return {"output": str(output), **saved["summary"]}


def _measure(subject: Subject, contexts: Sequence[int], settings: Settings) -> Iterator[Row]:
    """Rows of first tokens and of decoding, context by context, or for all at once where a state has one size."""
    newest: Any = None  # the last state that was read
    before: tuple[int, float] | None = None  # its context and seconds
    last: tuple[int, float] | None = None  # bytes of the last states that were timed, and the seconds of a call
    for group in [contexts] if subject.constant else [(context,) for context in contexts]:
        ones = dict[int, Any]()
        for context in group:
            seconds = _promised(before, context, power=1 if subject.constant else 2)
            row: Row = {"context": context, "state_bytes": subject.state_bytes(1, context)}
            reason = _too_much(seconds, settings.read_seconds, row["state_bytes"], settings)
            if reason is None:

                def read(context: int = context) -> Any:
                    nonlocal newest
                    newest = subject.read(context)
                    return newest

                # Three times, unless that would take longer than one may.
                times = time_calls(
                    read, seconds=settings.seconds, at_least=1 if 3 * seconds > settings.read_seconds else 3
                )
                before = context, statistics.median(times)
                ones[context] = newest
                yield {"what": "first token", **row, "milliseconds": 1e3 * before[1], "calls": len(times)}
            else:
                yield {"what": "first token", **row, "skipped": reason}
        for batch in settings.batch_sizes:
            states = dict[int, Any]()
            for context in group:
                size = subject.state_bytes(batch, context)
                promised = 0.0 if subject.constant else _promised(last, size, power=1)
                reason = _too_much(promised, settings.max_call_seconds, size, settings)
                if reason is None:
                    one = ones[context] if context in ones else subject.place(newest, context)
                    states[context] = subject.repeat(one, batch)
                else:
                    yield {"what": "decode", "batch": batch, "context": context, "state_bytes": size, "skipped": reason}
            steps = dict.fromkeys(states, subject.decode)
            for context, times in time_in_turn(steps, states, seconds=settings.seconds).items():
                median = statistics.median(times)
                last = subject.state_bytes(batch, context), median
                yield {
                    "what": "decode",
                    "batch": batch,
                    "context": context,
                    "state_bytes": subject.state_bytes(batch, context),
                    "state": "read" if context in ones else "placed",
                    "milliseconds": 1e3 * median / settings.block_size,
                    "min_milliseconds": 1e3 * min(times) / settings.block_size,
                    "tokens_per_second": batch * settings.block_size / median,
                    "calls": len(times),
                }


def _promised(before: tuple[int, float] | None, size: int, *, power: int) -> float:
    """Seconds, from a size and its seconds."""
    return 0.0 if before is None else before[1] * (size / before[0]) ** power


def _too_much(seconds: float, limit: float, state_bytes: int, settings: Settings) -> str | None:
    if state_bytes > settings.max_gigabytes * 1e9:
        return f"the state needs {state_bytes / 1e9:.1f} GB, the limit is {settings.max_gigabytes:g} GB"
    return f"it would take up to {seconds:.0f} s" if seconds > limit else None


def _reference(model: str, context: int, settings: Settings) -> Row:
    """What `benchmarks/inference_reference.py` says of the released code.

    Raises:
      UserError: it fails.
    """
    arguments = {
        "fields": reference_fields(MODELS[model]),
        "context": context,
        "seconds": 5 * settings.seconds,
        "threads": os.cpu_count(),
    }
    file, code = inference_reference.__file__, str(Path(settings.reference_code).absolute())
    try:
        found = subprocess.run(
            [settings.reference_python, file, code, json.dumps(arguments)], capture_output=True, text=True, check=True
        )
    except OSError as error:
        raise UserError(f"cannot start {settings.reference_python!r} ({error}): give a Python.") from error
    except subprocess.CalledProcessError as error:
        last = last_words(error.stderr, error.returncode)
        raise UserError(f"the reference failed ({last}): mend reference_python or reference_code.") from error
    result = {"context": context, **json.loads(found.stdout.splitlines()[-1])}
    print(json.dumps({"model": model, "kind": "reference", **result}), flush=True)
    return result


def _fastest(runs: Sequence[Row]) -> Row:
    """Of several, and how fast each was: two threads that wait for each other suffer most from what else is running."""
    best = max(runs, key=lambda run: run["tokens_per_second"])
    return {**best, "tokens_per_second_of_each_run": [run["tokens_per_second"] for run in runs]}


def _summary(model: str, rows: Sequence[Row], reference: Row | None, contexts: Sequence[int]) -> dict[str, Any]:
    """Ratios: to the shortest context, to softmax attention, to the reference."""
    linear, softmax = (
        {
            (row["batch"], row["context"]): row["tokens_per_second"]
            for row in rows
            if (row["model"], row["kind"], row["what"]) == (model, kind, "decode") and "skipped" not in row
        }
        for kind in ("linear", "softmax")
    )
    first = contexts[0]
    summary: dict[str, Any] = {
        "time_of_a_token_over_that_at_the_shortest_context": {
            f"batch {batch}, {context}": round(linear[batch, first] / speed, 3)
            for (batch, context), speed in linear.items()
            if context != first
        },
        "linear_over_softmax": {
            f"batch {batch}, {context}": round(linear[batch, context] / speed, 2)
            for (batch, context), speed in softmax.items()
            if (batch, context) in linear
        },
    }
    if reference is not None and (1, first) in linear:
        summary["linear_over_reference"] = round(linear[1, first] / reference["tokens_per_second"], 2)
    return summary


def _panels(rows: Sequence[Row], settings: Settings) -> Iterator[Panel]:
    """Of each model, tokens per second and the time to the first token."""
    names = {(kind, batch): f"{kind}, batch {batch}" for kind in settings.kinds for batch in settings.batch_sizes}
    for model in settings.models:
        for what, value, ylabel in (
            ("decode", "tokens_per_second", "tokens per second"),
            ("first token", "milliseconds", "ms to the first token"),
        ):
            lines = {
                name: [
                    (row["context"], row[value])
                    for row in rows
                    if (row["model"], row["kind"], row["what"]) == (model, kind, what)
                    and row.get("batch", 1) == batch
                    and "skipped" not in row
                ]
                for (kind, batch), name in names.items()
            }
            yield Panel(f"{model}: {what}", ylabel, lines)


if __name__ == "__main__":
    main("inference", Settings(), run)
