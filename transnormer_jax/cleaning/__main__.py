"""Cleans text: rules, near-duplicates and, with a configuration, the judgement of a model trained on it.

    python -m transnormer_jax.cleaning --files="raw/**/*.jsonl.gz" --out=clean
    python -m transnormer_jax.cleaning --files=wiki.txt --documents=marked --out=clean --config=configs/quickstart.py

Below `out`: `kept` (JSON lines, to train on with config.data.files), `removed/STAGE` (the others, each with its reason)
and `report.json`. With --config there are rounds of self-cleaning, `round_1`, ..., each with `model`, `kept` and
`removed` of its own. Killed, it goes on where it stopped. The last line of stdout is the report.
"""

import json
import os
from pathlib import Path

from absl import flags

from transnormer_jax import command
from transnormer_jax.errors import UserError

_FILES = flags.DEFINE_string("files", None, "Text files, parted by commas, as config.data.files.", required=True)
_OUT = flags.DEFINE_string("out", None, "Directory for what comes out.", required=True)
_DOCUMENTS = flags.DEFINE_string("documents", "file", "How text files divide, as config.data.documents.")
_FIELD = flags.DEFINE_string("field", "text", "Of JSON lines and Parquet, what holds the text.")
_LANGUAGES = flags.DEFINE_list("languages", ["en"], "ISO 639-1 names of the languages that stay; empty keeps all.")
_MIN_WORDS = flags.DEFINE_integer("min_words", 50, "Least words of a document.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", None, "Processes; one for every core by default.", lower_bound=1)
_CONFIG = command.define_config_flag(required=False)
_ROUNDS = flags.DEFINE_integer("rounds", 1, "Rounds of self-cleaning.", lower_bound=1)
_CUT = flags.DEFINE_float("cut", 0.1, "Share of the documents that a round of self-cleaning removes.", 0.0, 1.0)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 2048, "First tokens of a document that are judged.", lower_bound=1)


def main() -> None:
    """Cleans."""
    try:
        from transnormer_jax.cleaning.pipeline import Settings, clean
    except ImportError as error:
        raise UserError(f"{error}: install the extra, `pip install transnormer_jax[cleaning]`.") from error
    out, config = Path(_OUT.value), command.read_config_flag(_CONFIG) if _CONFIG.value else None
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
