"""Tokenizers for `transformers`: their files are copied or made, with a `tokenizer_config.json`."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from transnormer_jax import storage
from transnormer_jax.data.tokenizer_files import CHAT_TEMPLATE, SPECIAL_TOKENS, TOKENIZER_CONFIG
from transnormer_jax.data.tokenizers import ByteTokenizer, byte_vocabulary, load_tokenizer

# What belongs to a tokenizer, and its name in Hugging Face's layout.
_OF_GPT2 = {
    "vocab.json": "vocab.json",
    "merges.txt": "merges.txt",
    "encoder.json": "vocab.json",
    "vocab.bpe": "merges.txt",
}
_VOCABULARIES = {"tokenizer.model": "tokenizer.model", "tokenizer.json": "tokenizer.json", **_OF_GPT2}
_BESIDE_THEM = (TOKENIZER_CONFIG, SPECIAL_TOKENS, CHAT_TEMPLATE)


def copy_tokenizer(source: Path, target: storage.AnyPath) -> bool:
    """Copies the files of a tokenizer and its chat template.

    Args:
      source: a local directory, or a file of which the companions are beside it.
      target: a directory on a disk or a store.

    Returns:
      Whether there are any.
    """
    directory = source if source.is_dir() else source.parent
    files = {directory / name: new for name, new in _VOCABULARIES.items()}
    if source.is_file() and source.name not in _OF_GPT2:
        # Under the name by which other programs know it, and without another tokenizer that lies beside it.
        files = {source: f"tokenizer{source.suffix}"}
    found = {
        file: new for file, new in (files | {directory / name: name for name in _BESIDE_THEM}).items() if file.is_file()
    }
    for file, new in found.items():
        target.mkdir(parents=True, exist_ok=True)
        (target / new).write_bytes(file.read_bytes())
    return bool(found)


def write_tokenizer(directory: Path, name: str) -> None:
    """Writes a tokenizer as `transformers` reads it.

    Args:
      directory: local; made if it is missing.
      name: see `load_tokenizer`; local.
    """
    if name == "bytes":
        _write_bytes(directory)
    else:
        copy_tokenizer(Path(name), directory)
    if not (directory / TOKENIZER_CONFIG).exists():
        kind = "GPT2Tokenizer" if (directory / "merges.txt").exists() else "PreTrainedTokenizerFast"
        names = load_tokenizer(name).token_names
        content = {"tokenizer_class": kind, "clean_up_tokenization_spaces": False, **names}
        (directory / TOKENIZER_CONFIG).write_text(json.dumps(content, indent=2) + "\n")


def _write_bytes(directory: Path) -> None:
    """A `tokenizer.json` with the ids of `ByteTokenizer`."""
    tokenizer = Tokenizer(models.BPE(byte_vocabulary(), []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(sorted(ByteTokenizer.special_tokens, key=ByteTokenizer.special_tokens.__getitem__))
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
