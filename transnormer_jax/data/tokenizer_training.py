"""Vocabularies learnt from texts: byte-pair encoding by `tokenizers`, and SentencePiece's unigram model."""

from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from transnormer_jax.errors import UserError

_SPECIAL = ("<pad>", "<s>", "</s>")


def train_bpe(texts: Iterable[str], vocab_size: int, out: Path) -> None:
    """Writes `tokenizer.json`: byte-level byte-pair encoding as GPT-2's; ids 0, 1, 2 are padding, begin and end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(out / "tokenizer.json"))


def train_unigram(texts: Iterable[str], vocab_size: int, out: Path) -> None:
    """Writes `tokenizer.model`: SentencePiece's unigram model; ids 0, 1, 2 are padding, begin and end.

    Raises:
      UserError: the texts do not yield so many pieces.
    """
    lines = (line for text in texts for line in text.splitlines() if line)
    try:
        with open(out / "tokenizer.model", "wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=lines,
                model_writer=file,
                model_type="unigram",
                vocab_size=vocab_size,
                byte_fallback=True,
                character_coverage=0.9995,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                pad_id=0,
                bos_id=1,
                eos_id=2,
                unk_id=3,
                max_sentence_length=1 << 24,  # by default lines over 4 kB are left out without a word
                minloglevel=2,
            )
    except RuntimeError as error:
        message = " ".join(str(error).split())
        raise UserError(f"SentencePiece refuses ({message}): choose another --vocab_size or more text.") from error
