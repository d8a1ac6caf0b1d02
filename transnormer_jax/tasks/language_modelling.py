"""Language modelling: predict the next token of every document, or the masked ones."""

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from transnormer_jax.data import MaskedRows, MixedRows, PackedRows, Rows, TokenizedDocuments, Tokenizer, load_split
from transnormer_jax.data.text_loss import share_of_text_lost
from transnormer_jax.errors import UserError
from transnormer_jax.models import Cache, LanguageModel, ModelConfig
from transnormer_jax.models.block import has_constant_state
from transnormer_jax.tasks.cross_entropy import cross_entropy_sums
from transnormer_jax.tasks.task import (
    TASKS,
    Batch,
    HeldOutRows,
    LossSums,
    Params,
    Task,
    TrainingRows,
    check_vocabulary,
    random_streams,
)

if TYPE_CHECKING:
    from transnormer_jax.training.config import Config

EVALUATION_SEED = 0


@dataclasses.dataclass(frozen=True)
class LanguageModelling(Task):
    """Predicts tokens: what causal and masked language modelling have in common; `CausalLM` says what a batch is.

    Attributes:
      model: tokens to logits.
    """

    mixes_sources: ClassVar[bool] = True

    model: LanguageModel

    def init(self, key: Array) -> Params:
        """Parameters at initialisation; see `Task`."""
        return self.model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    def loss_and_metrics(self, params: Params, batch: Batch, key: Array | None = None) -> LossSums:
        """Sums over the batch, each row read from nothing; see `Task`."""
        return self._sums(params, batch, None, key)[0]

    def report(self, totals: LossSums) -> dict[str, float]:
        """Loss in nats per token, perplexity per token, accuracy."""
        loss = float(totals.loss / totals.predictions)
        return {
            "loss": loss,
            "perplexity": float(np.exp(loss)),
            "accuracy": float(totals.correct / totals.predictions),
            "tokens": int(totals.predictions),
        }

    def training_rows(self, config: "Config", tokenizer: Tokenizer) -> TrainingRows:
        """Packed rows of one source, or of a mixture; see `Task`."""
        documents = {
            name: load_split(source, tokenizer, source.train_split) for name, source in config.data.sources().items()
        }
        packed = {name: pack(config, source, tokenizer, config.seed) for name, source in documents.items()}
        rows_per_epoch = {name: source.rows_per_epoch for name, source in packed.items()}
        description = ", ".join(
            f"{f'{name} ' if config.data.mixture else ''}{len(source):,} documents and {source.num_tokens:,} tokens"
            for name, source in documents.items()
        )
        if not config.data.mixture:
            [source] = packed.values()
            rows = self._rows(config, source, tokenizer, config.seed)
            return TrainingRows(rows, source.rows_per_epoch, description)
        kind, amounts = config.data.amounts()
        weights = amounts if kind == "weight" else {name: amounts[name] * rows_per_epoch[name] for name in amounts}
        mixed = MixedRows(packed, weights)

        def consumption(rows: int) -> dict[str, float]:
            read = mixed.counts(rows)
            tokens = {f"data/{name}/tokens": float(count * config.sequence_length) for name, count in read.items()}
            return tokens | {f"data/{name}/epochs": count / rows_per_epoch[name] for name, count in read.items()}

        rows = self._rows(config, mixed, tokenizer, config.seed)
        return TrainingRows(rows, sum(rows_per_epoch.values()), description, consumption)

    def held_out(
        self, config: "Config", tokenizer: Tokenizer, split: str, max_tokens: int = 0
    ) -> HeldOutRows | TokenizedDocuments:
        """Packed rows of whole documents from all over the split; see `Task`."""
        documents = load_split(config.data, tokenizer, split)
        if max_tokens:
            documents = documents.sample(max_tokens)
        packed = pack(config, documents, tokenizer, EVALUATION_SEED)
        rows = self._rows(config, packed, tokenizer, EVALUATION_SEED)
        lost = share_of_text_lost(documents, tokenizer)
        return HeldOutRows(rows, packed.rows_per_epoch, int(documents.num_bytes.sum()), lost)

    @abc.abstractmethod
    def _rows(self, config: "Config", packed: Rows, tokenizer: Tokenizer, seed: int) -> Rows:
        """The rows of the task from rows of text."""

    def _sums(self, params: Params, batch: Batch, cache: Cache | None, key: Array | None) -> tuple[LossSums, Any]:
        variables = {"params": params}
        hidden: Any
        after: Any
        hidden, after = self.model.apply(
            variables,
            batch["inputs"],
            segment_ids=batch["segment_ids"],
            cache=cache,
            method="hidden",
            rngs=random_streams(key),
        )

        def unembed(readout: Params, hidden: Array) -> Any:
            # Back to the parameters' own type: the gradients of slices add up in it.
            wide = jax.tree.map(lambda x, like: x.astype(like.dtype), readout, {name: params[name] for name in readout})
            return self.model.apply({"params": wide}, hidden, method="unembed")

        real = (batch["segment_ids"] != 0).astype(jnp.float32)
        weights = (batch["mask"] != 0).astype(jnp.float32) if "mask" in batch else real
        vocab_size = self.model.config.vocab_size
        sums = cross_entropy_sums(unembed, self._readout(params), hidden, batch["targets"], weights, vocab_size)
        return sums._replace(tokens=jnp.sum(real)), after

    def _readout(self, params: Params) -> Params:
        """What follows the layers, matrices in the type of the computation: half as many bytes to gather."""
        dtype = self.model.config.dtype
        rest = {name: x for name, x in params.items() if name.startswith(("embedding", "head"))}
        return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, rest)


@TASKS.register("causal_lm")
@dataclasses.dataclass(frozen=True)
class CausalLM(LanguageModelling):
    """Predicts each token from those before it.

    A batch is `inputs`, `targets` and `segment_ids`, each [B, N] int32; targets count where the id is not 0, or where
    `mask`, if there is one, is not 0.
    """

    cuts_rows: ClassVar[bool] = True

    @classmethod
    def from_config(cls, config: "Config") -> Self:
        """See `Task`."""
        return cls(LanguageModel(require_model(config, causal=True)))

    def held_out(
        self, config: "Config", tokenizer: Tokenizer, split: str, max_tokens: int = 0
    ) -> HeldOutRows | TokenizedDocuments:
        """Whole documents if the model's state can be carried from window to window, else packed rows; see `Task`."""
        if not has_constant_state(self.model.config):
            return super().held_out(config, tokenizer, split, max_tokens)
        documents = load_split(config.data, tokenizer, split)
        return documents.sample(max_tokens) if max_tokens else documents

    def loss_and_metrics_from(self, params: Params, batch: Batch, cache: Cache) -> tuple[LossSums, Cache]:
        """Sums of `params` over the `batch`, each row going on from `cache`, and the cache after it."""
        return self._sums(params, batch, cache, None)

    def _rows(self, config: "Config", packed: Rows, tokenizer: Tokenizer, seed: int) -> Rows:
        del seed
        check_vocabulary(config, tokenizer.vocab_size)
        return packed


@TASKS.register("masked_lm")
@dataclasses.dataclass(frozen=True)
class MaskedLM(LanguageModelling):
    """Predicts the tokens that are hidden, from both sides: `mask` in the batch says which they are.

    RoBERTa's objective, in which TransNormer is a bidirectional language model (arXiv 2210.10340, section 5.1).
    """

    def __post_init__(self) -> None:
        """Raises UserError for a model that sees one side only."""
        if getattr(self.model.config, "causal", True):
            raise UserError("task 'masked_lm' needs a model that sees both sides: set config.model.causal=False.")

    @classmethod
    def from_config(cls, config: "Config") -> Self:
        """See `Task`."""
        return cls(LanguageModel(require_model(config)))

    def held_out(
        self, config: "Config", tokenizer: Tokenizer, split: str, max_tokens: int = 0
    ) -> HeldOutRows | TokenizedDocuments:
        """Rows without bits per byte: the loss is that of the hidden tokens alone. See `Task`."""
        rows = super().held_out(config, tokenizer, split, max_tokens)
        assert isinstance(rows, HeldOutRows)
        return rows._replace(num_bytes=0)

    def _rows(self, config: "Config", packed: Rows, tokenizer: Tokenizer, seed: int) -> Rows:
        check_vocabulary(config, tokenizer.vocab_size + 1)  # the mask
        return MaskedRows(
            packed,
            seed,
            mask_id=tokenizer.vocab_size,
            vocab_size=tokenizer.vocab_size,
            special_ids=set(special_ids(tokenizer).values()),
        )


def require_model(config: "Config", *, causal: bool = False) -> ModelConfig:
    """The model's configuration; raises UserError if it has no blocks, or is not causal but has to be."""
    if not isinstance(config.model, ModelConfig):
        raise UserError(
            f"architecture {config.architecture!r} cannot do task {config.task.name!r}: set "
            "config.architecture='transnormer'."
        )
    if causal and not config.model.causal:
        raise UserError(
            f"task {config.task.name!r} needs config.model.causal=True: otherwise a token sees what it predicts."
        )
    return config.model


def pack(config: "Config", documents: TokenizedDocuments, tokenizer: Tokenizer, seed: int) -> PackedRows:
    """Rows of `config.sequence_length` tokens."""
    return PackedRows(documents, config.sequence_length, seed=seed, **special_ids(tokenizer))


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of the tokens around documents, as arguments of rows."""
    return {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
