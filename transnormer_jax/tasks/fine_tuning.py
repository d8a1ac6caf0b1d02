"""Supervised fine-tuning: a causal language model learns the answers of conversations."""

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from transnormer_jax.data import (
    RELEASED_TEMPLATE,
    ChatTemplate,
    ConversationRows,
    Tokenizer,
    find_chat_template,
    load_conversations,
    tokenizer_directory,
)
from transnormer_jax.errors import UserError
from transnormer_jax.tasks.language_modelling import EVALUATION_SEED, CausalLM, special_ids
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
    directory = tokenizer_directory(config.data.tokenizer)
    own = None if directory is None else find_chat_template(directory)
    template = ChatTemplate(own or RELEASED_TEMPLATE, tokenizer)
    tokens, mask = load_conversations(config.data, tokenizer, template, split)
    if max_tokens:  # the mask has the lengths of the tokens, so these are the same conversations
        tokens, mask = tokens.sample(max_tokens), mask.sample(max_tokens)
    rows = ConversationRows(tokens, mask, config.sequence_length, **special_ids(tokenizer), seed=seed)
    answered = sum(int(mask[i].sum()) for i in range(len(mask)))
    return rows, f"{len(tokens):,} conversations of {tokens.num_tokens:,} tokens, {answered:,} of them answers"
