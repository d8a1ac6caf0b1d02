"""Trains a tokenizer on the training splits of a configuration.

    python -m transnormer_jax.data.train_tokenizer --config=configs/quickstart.py --kind=bpe --vocab_size=8192 --out=tok

`--kind=bpe` is byte-level byte-pair encoding by the `tokenizers` library and writes `tokenizer.json`; `--kind=unigram`
is SentencePiece's unigram model with bytes for rare characters and writes `tokenizer.model`. Both have begin, end and
padding tokens and decode exactly what was encoded. Use the result with `--config.data.tokenizer=OUT`. The last line of
stdout is one JSON object: the size of the vocabulary, and the bytes per token on the training text.
"""

import json
from collections.abc import Iterator

from absl import flags

from transnormer_jax import command, config_flag, storage
from transnormer_jax.data.config import DataConfig
from transnormer_jax.data.conversations import spoken
from transnormer_jax.data.splits import read_split
from transnormer_jax.data.tokenizer_training import train_bpe, train_unigram
from transnormer_jax.data.tokenizers import load_tokenizer
from transnormer_jax.errors import UserError

_CONFIG = config_flag.define_config_flag()
_KIND = flags.DEFINE_enum("kind", "bpe", ["bpe", "unigram"], "Byte-pair encoding, or SentencePiece's unigram model.")
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 32_768, "Size of the vocabulary.", lower_bound=260)
_MAX_BYTES = flags.DEFINE_integer("max_bytes", 1 << 30, "Bytes of UTF-8 text to learn from, per source.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "Directory for the tokenizer.", required=True)

_MEASURED_BYTES = 1 << 22


def main() -> None:
    """Trains."""
    data = config_flag.read_config_flag(_CONFIG).data
    out = storage.as_path(_OUT.value)
    if out.exists():
        raise UserError(f"{str(out)!r} already exists: choose another --out.")
    train = train_bpe if _KIND.value == "bpe" else train_unigram
    try:
        with storage.written_locally(out) as local:
            storage.publish(local, lambda written: train(_texts(data, _MAX_BYTES.value), _VOCAB_SIZE.value, written))
    except OSError as error:
        raise UserError(f"cannot make {str(out)!r} ({error.strerror}): choose another --out.") from error
    tokenizer = load_tokenizer(str(out))
    texts = list(_texts(data, _MEASURED_BYTES))
    num_bytes = sum(len(text.encode()) for text in texts)
    num_tokens = sum(map(len, tokenizer.encode_batch(texts)))
    print(json.dumps({"vocab_size": tokenizer.vocab_size, "bytes_per_token": num_bytes / num_tokens}))


def _texts(data: DataConfig, max_bytes: int) -> Iterator[str]:
    """The first documents of every source, up to and with the one that passes `max_bytes`."""
    for source in data.sources().values():
        taken = 0
        for text in read_split(source, source.train_split):
            if source.documents == "conversation":
                text = spoken(text)
            if taken >= max_bytes:
                break
            taken += len(text.encode())
            yield text


if __name__ == "__main__":
    command.run(main)
