"""How much of what is planted `transnormer_jax.cleaning` finds, and what one round of self-cleaning is worth.

Into the documents of some files go copies with 1% to 15% of their words changed, and rubbish of five kinds, as long as
documents drawn at random. Measured:

- recall of the copies by rate of change, among those of which original and copy pass the rules: one of them is removed;
- precision: of the removed duplicates, those of a planted pair, or whose word triples have a Jaccard similarity of at
  least 0.5 with those of the document that was kept for them;
- the rubbish that is removed, by kind, and what else the rules remove;
- bits per byte on documents held out before all this, after the same number of steps on the mix as it was, on what
  rules and duplicates have left of it, and on what a round of self-cleaning has left of either.

    python -m benchmarks.cleaning --files=wiki.txt --documents=marked

Writes a JSON file. The last line on stdout is a summary in JSON.
"""

import collections
import dataclasses
import gzip
import json
import random
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.planted import RUBBISH, near_duplicate, rubbish
from benchmarks.record import main, prepare, write
from transnormer_jax.cleaning.documents import read_shard, shards_of
from transnormer_jax.cleaning.pipeline import Settings as CleaningSettings
from transnormer_jax.cleaning.pipeline import clean
from transnormer_jax.cleaning.self_cleaning import self_clean
from transnormer_jax.data.text_files import find_files, read_documents
from transnormer_jax.errors import UserError
from transnormer_jax.training import Config, default_config, evaluate_run, train

_SIMILAR = 0.5
_LEAST_WORDS = 100
_LOWEST_RATE, _HIGHEST_RATE = 0.01, 0.15


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
      files: as config.data.files.
      documents: as config.data.documents.
      max_documents: of the files.
      held_out: documents on which training is judged.
      near_duplicates: planted.
      rubbish: planted documents, of all kinds together.
      num_steps: of each training, 1,024 bytes each; 0 leaves training out.
      cut: share that self-cleaning removes.
      max_tokens: of a document, on which self-cleaning judges it.
      workers: processes.
      seed: of everything planted.
    """

    files: str = ""
    documents: str = "marked"
    max_documents: int = 1_000_000
    held_out: int = 60
    near_duplicates: int = 2000
    rubbish: int = 500
    num_steps: int = 1000
    cut: float = 0.05
    max_tokens: int = 512
    workers: int = 2
    seed: int = 0

    def __post_init__(self):
        numbers = (self.held_out, self.near_duplicates, self.rubbish, self.num_steps, self.seed)
        if min(numbers) < 0 or min(self.max_documents, self.max_tokens, self.workers) < 1 or not 0 < self.cut < 1:
            raise UserError(
                "a count is negative, one of max_documents, max_tokens and workers is below 1, or cut is not between 0 "
                "and 1: give others."
            )


def run(settings: Settings, output: Path, command_line: str) -> dict[str, Any]:
    """Returns the summary."""
    prepare(output)
    if not settings.files:
        raise UserError("there is nothing to clean: give --files.")
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        planted = _plant(settings, directory)
        begin = time.perf_counter()
        report = clean(CleaningSettings(str(directory / "mix.jsonl")), directory / "clean", settings.workers)
        seconds = time.perf_counter() - begin
        found = _judge(planted, directory / "clean")
        trained = _train(settings, directory) if settings.num_steps else {}
    report = {name: part for name, part in report.items() if name != "files"}
    content = {"cleaning_seconds": seconds, "report": report, "found": found, "training": trained}
    write(output, command_line, settings, content)
    return {"output": str(output)} | found | {"held_out_bits_per_byte": trained.get("bits_per_byte")}


def _plant(settings: Settings, directory: Path) -> dict[str, dict[str, Any]]:
    """Writes `mix.jsonl` and `held_out.jsonl`; returns what is planted under each number of a line of the mix."""
    chance = random.Random(settings.seed)
    texts = [text for file in find_files(settings.files) for text in read_documents(file, settings.documents)][
        : settings.max_documents
    ]
    chance.shuffle(texts)
    _write(directory / "held_out.jsonl", texts[: settings.held_out])
    originals = texts[settings.held_out :]
    words = [word for text in chance.sample(originals, min(200, len(originals))) for word in text.split()]
    mix: list[tuple[str, dict[str, Any]]] = [(text, {"kind": "original"}) for text in originals]
    long = [number for number, text in enumerate(originals) if len(text.split()) >= _LEAST_WORDS]
    if len(long) < settings.near_duplicates or (settings.rubbish and not originals):
        raise UserError(
            f"beside those held out, {len(long)} documents have {_LEAST_WORDS} words: give more text, or plant fewer "
            f"than {settings.near_duplicates} near_duplicates."
        )
    for number in chance.sample(long, settings.near_duplicates):
        rate = chance.uniform(_LOWEST_RATE, _HIGHEST_RATE)
        copy = near_duplicate(originals[number], rate, words, chance)
        mix.append((copy, {"kind": "copy", "of": originals[number], "rate": rate}))
    for number in range(settings.rubbish):
        kind = RUBBISH[number % len(RUBBISH)]
        mix.append((rubbish(kind, max(300, len(chance.choice(originals))), chance), {"kind": kind}))
    chance.shuffle(mix)
    _write(directory / "mix.jsonl", (text for text, _ in mix))
    places = {text: f"mix.jsonl#{number}" for number, (text, _) in enumerate(mix)}
    planted = {f"mix.jsonl#{number}": what for number, (_, what) in enumerate(mix)}
    for what in planted.values():
        if what["kind"] == "copy":
            what["of"] = places[what["of"]]
    return planted


def _judge(planted: dict[str, dict[str, Any]], out: Path) -> dict[str, Any]:
    duplicates = {record["id"]: record for record in _records(out / "removed" / "duplicates")}
    kept = {record["id"]: record for record in _records(out / "kept")}
    of_cluster = {record["metadata"]["minhash_cluster_id"]: record for record in kept.values()}
    passed = kept.keys() | duplicates.keys()

    right, doubtful = 0, []
    for name, record in duplicates.items():
        survivor = of_cluster[record["metadata"]["minhash_cluster_id"]]
        pair = {planted[name].get("of"), planted[survivor["id"]].get("of"), name, survivor["id"]} - {None}
        similarity = _jaccard(record["text"], survivor["text"])
        if len(pair) == 2 or similarity >= _SIMILAR:
            right += 1
        else:
            doubtful.append({"removed": record["text"][:80], "kept": survivor["text"][:80], "jaccard": similarity})

    copies = [(name, what) for name, what in planted.items() if what["kind"] == "copy"]
    found, possible = collections.Counter[str](), collections.Counter[str]()
    for name, what in copies:
        band = _band(what["rate"])
        if name in passed and what["of"] in passed:
            possible[band] += 1
            found[band] += name in duplicates or what["of"] in duplicates
    kinds = collections.Counter(what["kind"] for what in planted.values())
    stayed = collections.Counter(planted[name]["kind"] for name in kept)
    removed_by_rules = sum(what["kind"] == "original" and name not in passed for name, what in planted.items())
    return {
        "recall_by_rate": {
            band: {"recall": found[band] / possible[band], "of": possible[band]} for band in sorted(possible)
        },
        "recall_below_5_percent": _recall(found, possible, "01-03%", "03-05%"),
        "duplicates_removed": len(duplicates),
        "precision": right / len(duplicates) if duplicates else None,
        "doubtful": doubtful,
        "rubbish_removed": _removed(stayed, kinds, *RUBBISH),
        "rubbish_removed_by_kind": {kind: _removed(stayed, kinds, kind) for kind in RUBBISH},
        "originals": kinds["original"],
        "originals_removed_by_rules": removed_by_rules,
    }


def _train(settings: Settings, directory: Path) -> dict[str, Any]:
    config = default_config(
        vocab_size=259, num_layers=3, model_dim=224, num_heads=7, glu_dim=608, init_std=0.05, dtype="float32"
    )
    config.data.dataset, config.data.held_out = "plain_text", 0.01
    config.data.data_dir = str(directory / "datasets")
    config.num_steps, config.batch_size, config.sequence_length = settings.num_steps, 4, 256
    config.checkpoint_every = config.log_every = settings.num_steps
    config.optimizer.learning_rate, config.optimizer.warmup_steps, config.optimizer.final_fraction = 2e-3, 50, 0.02
    config.evaluation.every, config.evaluation.batch_size, config.evaluation.max_tokens = 0, 4, 10_000
    built = Config.from_dict(config.to_dict())
    runs, rounds = {}, {}
    for name, files in {"mix": _shard(directory / "mix.jsonl"), "rules": directory / "clean" / "kept"}.items():
        out = directory / "rounds" / name
        [rounds[name]] = self_clean(files, out, built, rounds=1, cut=settings.cut, max_tokens=settings.max_tokens)
        runs[name] = out / "round_1" / "model"  # The judge has learnt what it judges.
        data = dataclasses.replace(built.data, files=str(out / "round_1" / "kept"))
        runs[f"{name}, self-cleaned"] = directory / "runs" / name
        train(dataclasses.replace(built, data=data), directory / "runs" / name)
    config.data.files, config.data.held_out = str(directory / "held_out.jsonl"), 0.0
    config.evaluation.max_tokens = 0
    on_held_out = Config.from_dict(config.to_dict())
    bits_per_byte = {
        name: evaluate_run(workdir, on_held_out, "train")["bits_per_byte"] for name, workdir in runs.items()
    }
    return {"rounds": rounds, "bits_per_byte": bits_per_byte}


def _shard(mix: Path) -> Path:
    """The mix in the form that cleaning leaves, nothing removed."""
    directory = mix.with_suffix("")
    directory.mkdir()
    with open(mix, encoding="utf-8") as lines, gzip.open(directory / "00000.jsonl.gz", "wt", encoding="utf-8") as file:
        for number, line in enumerate(lines):
            file.write(json.dumps(json.loads(line) | {"id": str(number), "metadata": {}}) + "\n")
    return directory


def _jaccard(a: str, b: str) -> float:
    first, second = ({tuple(words[i : i + 3]) for i in range(len(words) - 2)} for words in (a.split(), b.split()))
    return len(first & second) / max(1, len(first | second))


def _band(rate: float) -> str:
    low = next(low for low in (10, 5, 3, 1) if rate * 100 >= low)
    return {1: "01-03%", 3: "03-05%", 5: "05-10%", 10: "10-15%"}[low]


def _recall(found: collections.Counter[str], possible: collections.Counter[str], *bands: str) -> float | None:
    planted = sum(possible[band] for band in bands)
    return sum(found[band] for band in bands) / planted if planted else None


def _removed(stayed: collections.Counter[str], planted: collections.Counter[str], *kinds: str) -> float | None:
    left = _recall(stayed, planted, *kinds)
    return None if left is None else 1 - left


def _records(directory: Path) -> Iterator[dict[str, Any]]:
    return (record for shard in shards_of(directory) for record in read_shard(shard))


def _write(path: Path, texts: Iterable[str]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


if __name__ == "__main__":
    main("cleaning", Settings(), run)
