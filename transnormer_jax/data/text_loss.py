"""How much of a text a tokenizer loses: what it has no token for, or what its normalisation removes."""

from transnormer_jax.data.tokenized import TokenizedDocuments
from transnormer_jax.data.tokenizers import Tokenizer

_SAMPLE = 1 << 16  # tokens, together and of one document

NOTABLE_LOSS = 0.01
"""A share from which on a score by the byte is no longer one of the whole text."""


def share_of_text_lost(documents: TokenizedDocuments, tokenizer: Tokenizer) -> float:
    """The share of the UTF-8 bytes of a sample of documents that do not come back from their tokens, from 0 to 1.

    Spaces and line breaks that are removed count like any other text: the bytes by which a score is divided have them.
    Of a document of more than 65,536 tokens, its beginning stands for all of it.
    """
    sample = documents.sample(_SAMPLE)
    come_back = 0.0
    for i in range(len(sample)):
        tokens = sample[i][:_SAMPLE]
        known = tokens[tokens != tokenizer.unknown_id] if tokenizer.unknown_id is not None else tokens
        share = len(tokens) / max(1, int(sample.lengths[i]))
        found = len(tokenizer.decode(known.tolist()).encode(errors="replace")) / (share or 1)
        # One document whose text becomes longer must not make up for another that is lost.
        come_back += min(found, int(sample.num_bytes[i]))
    return max(0.0, 1 - come_back / max(1, int(sample.num_bytes.sum())))


def loss_warning(lost: float) -> str:
    """A sentence about a notable share."""
    return (
        f"warning: the tokenizer loses {lost:.1%} of the bytes of the text, so its scores are too good: use one that "
        "gives back any text, such as byte-level BPE or one with byte fallback."
    )
