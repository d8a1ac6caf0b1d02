"""Supervised fine-tuning: a causal language model learns the answers of conversations."""

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from transnormer_jax.data import (
    ConversationRows,
    TokenizedDocuments,
    Tokenizer,
    load_conversations,
    read_numbers,
)
from transnormer_jax.errors import UserError
from transnormer_jax.tasks.language_modelling import EVALUATION_SEED, CausalLM
from transnormer_jax.tasks.task import TASKS, HeldOutRows, TrainingRows, check_vocabulary

if TYPE_CHECKING:
    from transnormer_jax.training.config import Config


@TASKS.register("supervised_lm")
@dataclasses.dataclass(frozen=True)
class SupervisedLM(CausalLM):
    """A `CausalLM` whose batches have a `mask`, 1 where the assistant writes.

    The chat template is that of the tokenizer, or that of TransNormerLLM's fine-tuning.
    """

    mixes_sources: ClassVar[bool] = False
    cuts_rows: ClassVar[bool] = False  # conversations are whole

    def training_rows(self, config: "Config", tokenizer: Tokenizer) -> TrainingRows:
        """See `Task`."""
        rows, description = _conversation_rows(config, tokenizer, config.data.train_split, config.seed)
        return TrainingRows(rows, rows.rows_per_epoch, description)

    def held_out(self, config: "Config", tokenizer: Tokenizer, split: str, max_tokens: int = 0) -> HeldOutRows:
        """See `Task`."""
        rows, _ = _conversation_rows(config, tokenizer, split, EVALUATION_SEED, max_tokens)
        return HeldOutRows(rows, rows.rows_per_epoch)


def _conversation_rows(
    config: "Config", tokenizer: Tokenizer, split: str, seed: int, max_tokens: int = 0
) -> tuple[ConversationRows, str]:
    if config.data.documents != "conversation" or config.data.dataset != "plain_text":
        raise UserError(
            "task 'supervised_lm' learns from one dataset of conversations: set config.data.dataset='plain_text' and "
            "config.data.documents='conversation'."
        )
    check_vocabulary(config, tokenizer.vocab_size)
    conversations = load_conversations(config.data, tokenizer, split, config.sequence_length)
    if max_tokens:
        conversations = conversations.sample(max_tokens)
    length, begin, padding = config.sequence_length, tokenizer.bos_id, tokenizer.pad_id
    rows = ConversationRows(conversations, length, bos_id=begin, pad_id=padding, seed=seed)
    return rows, _description(conversations, length)


def _description(conversations: TokenizedDocuments, length: int) -> str:
    left_out = int(np.sum(conversations.lengths == 0))
    answers = shortened = 0
    for i in np.flatnonzero(conversations.lengths).tolist():
        _, learnt, short = read_numbers(conversations[i])
        answers += int(learnt.sum())
        shortened += int(short[0])
    counts = f"{len(conversations) - left_out:,} conversations of {conversations.num_tokens:,} tokens, {answers:,} of "
    more = f"{shortened:,} were shortened to {length:,} tokens" * (shortened > 0)
    none = f"{left_out:,} without an answer that fits were left out" * (left_out > 0)
    return f"{counts}them answers" + "".join(f"; {said}" for said in (more, none) if said)
