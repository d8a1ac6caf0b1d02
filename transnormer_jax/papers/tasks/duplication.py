"""Sequence duplication, a causal language model of which some targets count."""

import dataclasses
from typing import ClassVar

from transnormer_jax.data import Tokenizer
from transnormer_jax.papers.data import DuplicationRows
from transnormer_jax.tasks import TASKS, CausalLM, HeldOutRows, TrainingRows
from transnormer_jax.tasks.task import check_vocabulary
from transnormer_jax.training import Config

_EVALUATION_EXAMPLES = 1024


@TASKS.register("duplication")
@dataclasses.dataclass(frozen=True)
class Duplication(CausalLM):
    """A `CausalLM` on `DuplicationRows`."""

    mixes_sources: ClassVar[bool] = False
    cuts_rows: ClassVar[bool] = False
    reads_data: ClassVar[bool] = False

    def training_rows(self, config: Config, tokenizer: Tokenizer) -> TrainingRows:
        """See `Task`."""
        del tokenizer
        check_vocabulary(config, DuplicationRows.vocab_size)
        rows = DuplicationRows(config.seed)
        return TrainingRows(rows, config.num_steps * config.batch_size, "sequences generated on the fly")

    def held_out(self, config: Config, tokenizer: Tokenizer, split: str, max_tokens: int = 0) -> HeldOutRows:
        """See `Task`; 1,024 sequences, whatever the split."""
        del config, tokenizer, split, max_tokens
        # No training run has this seed: it may not be negative, and ours are small.
        return HeldOutRows(DuplicationRows(seed=2**32), _EVALUATION_EXAMPLES)
