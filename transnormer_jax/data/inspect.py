"""Shows the text of a configuration: sources, tokens, lengths and shares, and documents split into tokens.

    python -m transnormer_jax.data.inspect --config=configs/quickstart.py --documents=2 --plot=data.png

Text that has not been tokenised yet is tokenised first. Of conversations, the tokens that are learnt are shown once
more. The last line of stdout is one JSON object with all counts.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from transnormer_jax import command, config_flag, storage
from transnormer_jax.data.config import DataConfig
from transnormer_jax.data.conversations import read_numbers
from transnormer_jax.data.splits import load_conversations, load_split
from transnormer_jax.data.text_loss import NOTABLE_LOSS, loss_warning, share_of_text_lost
from transnormer_jax.data.tokenized import TokenizedDocuments
from transnormer_jax.data.tokenizers import Tokenizer, load_tokenizer
from transnormer_jax.errors import UserError

_CONFIG = config_flag.define_config_flag()
_DOCUMENTS = flags.DEFINE_integer("documents", 0, "Number of documents to show from each source.", lower_bound=0)
_PLOT = flags.DEFINE_string("plot", "", "File for a plot of lengths and shares, such as data.png.")

_SHOWN_TOKENS = 64
_COLUMNS = ("documents", "tokens", "bytes", "bytes/token", "min", "median", "mean", "p99", "max")


def main() -> None:
    """Shows."""
    config = config_flag.read_config_flag(_CONFIG)
    tokenizer = load_tokenizer(config.data.tokenizer)
    sources = {
        f"{name} {split}": _load(source, tokenizer, split, config.sequence_length)
        for name, source in config.data.sources().items()
        for split in dict.fromkeys((source.train_split, source.eval_split))
    }
    talks = config.data.documents == "conversation"
    report = {
        name: describe(documents) | {"text_lost": 0.0 if talks else round(share_of_text_lost(documents, tokenizer), 4)}
        for name, documents in sources.items()
    }
    width = max(map(len, report))
    print(f"{'':{width}}" + "".join(f"{column:>16}" for column in _COLUMNS))
    for name, counts in report.items():
        print(f"{name:{width}}" + "".join(f"{counts[column]:>16,}" for column in _COLUMNS))
    lost = max(counts["text_lost"] for counts in report.values())
    if lost > NOTABLE_LOSS:
        print(loss_warning(lost))
    for name, documents in sources.items():
        for place in np.linspace(0, len(documents) - 1, _DOCUMENTS.value).astype(int):
            print(f"\n{name}, document {place} of {len(documents):,}, {documents.lengths[place]:,} tokens:")
            tokens = documents[place]
            if talks:
                tokens, learnt, _ = read_numbers(tokens)
            print(pieces(tokens, tokenizer))
            if talks:
                print(f"learnt: {pieces(tokens[learnt == 1], tokenizer)}")
    if _PLOT.value:
        _plot(sources, storage.local_path(_PLOT.value))
    print(json.dumps(report))


def _load(source: DataConfig, tokenizer: Tokenizer, split: str, length: int) -> TokenizedDocuments:
    if source.documents == "conversation":
        return load_conversations(source, tokenizer, split, length)
    return load_split(source, tokenizer, split)


def describe(documents: TokenizedDocuments) -> dict[str, Any]:
    """Returns counts, and quantiles of the lengths of documents in tokens."""
    lengths, num_bytes = documents.lengths, int(documents.num_bytes.sum())
    return {
        "documents": len(documents),
        "tokens": documents.num_tokens,
        "bytes": num_bytes,
        "bytes/token": round(num_bytes / max(1, documents.num_tokens), 3),
        "min": int(lengths.min()),
        "median": float(np.median(lengths)),
        "mean": round(float(lengths.mean()), 1),
        "p99": round(float(np.quantile(lengths, 0.99)), 1),
        "max": int(lengths.max()),
    }


def pieces(tokens: np.ndarray, tokenizer: Tokenizer) -> str:
    """Returns the beginning of a document as text, its tokens separated by bars."""
    special = {index: name for name, index in tokenizer.special_tokens.items()}
    shown = [special.get(token) or tokenizer.decode([token]) for token in tokens[:_SHOWN_TOKENS].tolist()]
    return "|".join(shown) + (" ..." if len(tokens) > _SHOWN_TOKENS else "")


def _plot(sources: dict[str, TokenizedDocuments], file: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("--plot needs matplotlib: install it, or leave --plot out.") from error
    figure = Figure(figsize=(10, 4), layout="constrained")
    lengths, shares = figure.subplots(1, 2)
    longest = max(int(documents.lengths.max()) for documents in sources.values())
    bins = np.geomspace(1, longest + 1, 50)
    for name, documents in sources.items():
        # Weighted by tokens, a curve shows where the tokens are, and not the many short documents.
        weights = documents.lengths / documents.num_tokens
        lengths.hist(documents.lengths, bins, weights=weights, histtype="step", label=name)
    lengths.set(xscale="log", xlabel="tokens in the document", ylabel="share of the tokens")
    lengths.legend()
    shares.barh(list(sources), [documents.num_tokens for documents in sources.values()])
    shares.set(xlabel="tokens")
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot write the plot {str(file)!r} ({reason}): give a name such as data.png.") from error


if __name__ == "__main__":
    command.run(main)
