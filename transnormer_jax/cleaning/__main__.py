"""Cleans text: rules, near-duplicates and, with a configuration, the scores of a model trained on the text.

    python -m transnormer_jax.cleaning --files="raw/**/*.jsonl.gz" --out=clean
    python -m transnormer_jax.cleaning --files=wiki.txt --documents=delimited --out=clean --config=configs/quickstart.py

Writes into `out`: `kept` (JSON lines, to train on with config.data.files), `removed/STAGE` (the other documents, each
with the reason) and `report.json`. With --config there are rounds of self-cleaning, `round_1`, ..., each with its own
`model`, `kept` and `removed`. If killed, it continues where it stopped when it is run again. The last line of stdout is
the report.
"""

import json
import os

from absl import flags

from transnormer_jax import command, config_flag, storage

_FILES = flags.DEFINE_string("files", None, "Text files, separated by commas, as in config.data.files.", required=True)
_OUT = flags.DEFINE_string("out", None, "Directory for the results.", required=True)
_DOCUMENTS = flags.DEFINE_string(
    "documents", "file", "How text files are divided into documents, as in config.data.documents."
)
_FIELD = flags.DEFINE_string("field", "text", "Field that holds the text in JSON lines and Parquet.")
_LANGUAGES = flags.DEFINE_list("languages", ["en"], "ISO 639-1 codes of the languages to keep; empty keeps all.")
_MIN_WORDS = flags.DEFINE_integer("min_words", 50, "Minimum number of words of a document.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", None, "Number of processes; by default one per core.", lower_bound=1)
_CONFIG = config_flag.define_config_flag(required=False)
_ROUNDS = flags.DEFINE_integer("rounds", 1, "Number of rounds of self-cleaning.", lower_bound=1)
_CUT = flags.DEFINE_float("cut", 0.1, "Fraction of the documents that a round of self-cleaning removes.", 0.0, 1.0)
_MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", 2048, "Number of tokens, from the start of a document, that are scored.", lower_bound=1
)


def main() -> None:
    """Cleans."""
    with command.extra("cleaning", "datatrove", "fsspec", "multiprocess", "orjson", "py3langid", "regex", "xxhash"):
        from transnormer_jax.cleaning.pipeline import Settings, clean
    config = config_flag.read_config_flag(_CONFIG) if _CONFIG.value else None
    out = storage.local_path(_OUT.value)
    settings = Settings(_FILES.value, _DOCUMENTS.value, _FIELD.value, tuple(_LANGUAGES.value), _MIN_WORDS.value)
    report = clean(settings, out, _WORKERS.value or os.cpu_count() or 1)
    if config is not None:
        from transnormer_jax.cleaning.self_cleaning import self_clean

        report["rounds"] = self_clean(
            out / "kept", out, config, rounds=_ROUNDS.value, cut=_CUT.value, max_tokens=_MAX_TOKENS.value
        )
        (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    command.run(main)
