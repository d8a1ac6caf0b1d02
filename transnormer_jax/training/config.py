"""The configuration of a run: frozen dataclasses, filled from a file in `configs/` and from the command line."""

import dataclasses
import math
import numbers
import operator
import typing
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from transnormer_jax.data import DataConfig
from transnormer_jax.distributed import MeshConfig
from transnormer_jax.errors import UserError, did_you_mean
from transnormer_jax.models import ARCHITECTURES, TransNormerConfig, TransNormerLLMConfig
from transnormer_jax.registry import load_plugin
from transnormer_jax.tasks import TASKS, TaskConfig

ModelConfig = TransNormerLLMConfig | TransNormerConfig

# Fields of the architecture that may differ between a checkpoint and a run: they alter speed or memory alone.
FREE_MODEL_FIELDS = ("remat", "backend", "dtype", "dropout")
# So may those that count only until there are parameters.
INITIAL_MODEL_FIELDS = ("init_std", "pad_token_id")

# In words, and as a test, what a number must be; and the keys of the numbers.
_RANGES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    (
        "at least 1",
        lambda x: x >= 1,
        (
            "num_steps",
            "batch_size",
            "sequence_length",
            "accumulation_steps",
            "max_skipped_steps",
            "log_every",
            "keep_checkpoints",
            "profile_steps",
            "evaluation.batch_size",
            "evaluation.window",
        ),
    ),
    (
        "at least 0",
        lambda x: 0 <= x < math.inf,
        (
            "seed",
            "checkpoint_every",
            "checkpoint_minutes",
            "keep_every",
            "keep_best",
            "profile_at",
            "watchdog_seconds",
            "evaluation.every",
            "evaluation.max_tokens",
            "optimizer.learning_rate",
            "optimizer.warmup_steps",
            "optimizer.weight_decay",
            "optimizer.clip_norm",
        ),
    ),
    ("from 0 to 65535", lambda x: 0 <= x <= 65535, ("profiler_port",)),
    ("greater than 0", lambda x: 0 < x < math.inf, ("optimizer.eps",)),
    ("at least 0 and less than 1", lambda x: 0 <= x < 1, ("optimizer.b1", "optimizer.b2")),
    ("at least 0 and at most 1", lambda x: 0 <= x <= 1, ("optimizer.final_fraction",)),
    ("greater than 0 and at most 1", lambda x: 0 < x <= 1, ("optimizer.decay_fraction",)),
)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer with clipping by global norm, and a learning rate with a warm-up.

    Attributes:
      name: "adamw", "radam", "adafactor" (factored second moments, no first moment) or "muon" (Muon for the matrices of
        the layers, Adam for the rest), all with the same decoupled weight decay.
      learning_rate: peak learning rate.
      schedule: what follows the warm-up. "cosine": half a cosine down to the final rate; "wsd" (warm-up, stable,
        decay): the peak, then a linear decay over the last `decay_fraction` of the run; "step": the peak, then
        `final_fraction` of it for the last `decay_fraction` of the run; "inverse_sqrt": peak times
        sqrt(warmup_steps / step).
      warmup_steps: steps of linear warm-up from 0.
      decay_fraction: fraction of all steps in the last phase of "wsd" and "step".
      final_fraction: final learning rate, as a fraction of the peak.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the square root of the second moment.
      weight_decay: applied to matrices only (projections and embedding), times the learning rate.
      clip_norm: upper bound on the global norm of the gradient; 0 turns clipping off.
    """

    name: str = "adamw"
    learning_rate: float = 3e-4
    schedule: str = "cosine"
    warmup_steps: int = 100
    decay_fraction: float = 0.2
    final_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation on a held-out split.

    Attributes:
      every: steps between evaluations during training; 0 evaluates only at the end.
      max_tokens: tokens of the split that are evaluated during training, in whole documents or examples from all over
        it, the same ones each time; 0 means all. `eval.py` reads all.
      batch_size: rows per batch, over all hosts.
      window: tokens per row and call where a TransNormerLLM reads whole documents. The state is carried from window to
        window, so this affects memory and speed, not the result.
    """

    every: int = 500
    max_tokens: int = 1_000_000
    batch_size: int = 16
    window: int = 1024


@dataclasses.dataclass(frozen=True)
class Config:
    """One run.

    Attributes:
      architecture: "transnormer_llm", "transnormer", "baseline" (a TransNormer with the options of the papers'
        baselines) or another registered one; it determines the keys of `model`.
      model: the model's configuration.
      task: what the model is trained for; its `name` determines its other keys.
      data: dataset and tokenizer.
      optimizer: optimizer and schedule.
      evaluation: evaluation on held-out data.
      mesh: devices along the axes data, fsdp, context and tensor.
      init_from: workdir of another run, or of a converted checkpoint, local or in a bucket. This run starts from its
        newest parameters, with a new optimizer state, and takes over its architecture; of `model`, only the keys that
        affect speed, memory or dropout count. Empty: random parameters.
      seed: seed of the initial parameters, of the order of the data, and of dropout.
      num_steps: total number of optimizer steps.
      batch_size: rows per step, over all hosts.
      sequence_length: N, tokens per row; longer examples are truncated.
      curriculum: pairs (last step, tokens per row) in increasing order. Up to that step, each row is cut into rows of
        that many tokens, which must divide N: ((1000, 256), (3000, 512)) with N = 2048 means 256, then 512, then 2048
        tokens.
      accumulation_steps: micro-batches per step; more of them need less memory and do not change the result.
      max_skipped_steps: the run stops after this many consecutive steps whose loss or gradient is not finite.
      log_every: steps between lines of metrics.
      checkpoint_every: steps between checkpoints; 0 saves by time alone. A failure costs at most so many steps and one
        more: training waits for a checkpoint that is still being written when the step after it is done.
      checkpoint_minutes: a checkpoint is also saved when the last one is this many minutes old; 0 saves by steps alone.
        A failure costs so many minutes and the time in which a checkpoint is written, since training goes on meanwhile.
      keep_checkpoints: number of newest checkpoints to keep; older ones are deleted, except as the next two keys say.
      keep_every: checkpoints of steps that are a multiple of this are never deleted; 0 means none.
      keep_best: number of checkpoints with the lowest held-out loss to keep; 0 means none.
      compilation_cache: directory in which compiled programs are kept, so that the next start does not compile them
        again. Empty: `WORKDIR/compilation_cache`, unless the environment variable `JAX_COMPILATION_CACHE_DIR` names
        another; "off": none.
      profile_at: step at which a TensorBoard profile of `profile_steps` steps starts; 0 means no profile.
      profile_steps: number of steps to profile.
      profiler_port: TCP port at which a running process answers TensorBoard's request for a profile; 0 means none.
      wandb_project: Weights & Biases project to log to in addition; empty for none.
      watchdog_seconds: if a step takes longer than this, the stacks of all threads are printed; 0 turns this off.
      plugins: modules, or Python files (`"my_mixer.py"`), that are imported before names are looked up. They register
        token mixers, tasks and datasets. Every command that opens the run imports them again.
    """

    architecture: str = "transnormer_llm"
    model: ModelConfig = dataclasses.field(default_factory=TransNormerLLMConfig)
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    init_from: str = ""
    seed: int = 0
    num_steps: int = 1000
    batch_size: int = 32
    sequence_length: int = 1024
    curriculum: tuple[tuple[int, int], ...] = ()
    accumulation_steps: int = 1
    max_skipped_steps: int = 10
    log_every: int = 20
    checkpoint_every: int = 500
    checkpoint_minutes: float = 15.0
    keep_checkpoints: int = 3
    keep_every: int = 0
    keep_best: int = 1
    compilation_cache: str = ""
    profile_at: int = 0
    profile_steps: int = 5
    profiler_port: int = 0
    wandb_project: str = ""
    watchdog_seconds: int = 600
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises UserError where the fields do not fit together."""
        task = TASKS[self.task.name]
        if not isinstance(self.task, task.options):
            raise UserError(
                f"task {self.task.name!r} has options of its own: make config.task a {task.options.__name__}."
            )
        for words, is_right, keys in _RANGES:
            for key in keys:
                value = operator.attrgetter(key)(self)
                if not is_right(value):
                    raise UserError(f"config.{key}={value} must be {words}.")
        if not self.checkpoint_every and not self.checkpoint_minutes:
            raise UserError("config.checkpoint_every and config.checkpoint_minutes are both 0: set one of them.")
        if self.batch_size % self.accumulation_steps:
            raise UserError(
                f"config.batch_size={self.batch_size} must be a multiple of "
                f"config.accumulation_steps={self.accumulation_steps}."
            )
        if self.data.mixture and not task.mixes_sources:
            raise UserError(
                f"config.data.mixture is for language models on text, not for task {self.task.name!r}: leave it empty."
            )
        self._check_curriculum()

    def _check_curriculum(self) -> None:
        stages = self.curriculum
        if not all(isinstance(stage, tuple) and len(stage) == 2 for stage in stages):
            raise UserError(f"config.curriculum={stages} must be pairs (last step, tokens per row).")
        if stages and not TASKS[self.task.name].cuts_rows:
            raise UserError(f"config.curriculum cannot cut the rows of task {self.task.name!r}: leave it empty.")
        last_steps = [last_step for last_step, _ in stages]
        if last_steps != sorted(set(last_steps)):
            raise UserError(f"config.curriculum={stages}: the last steps must increase from pair to pair.")
        for _, length in stages:
            if length < 1 or self.sequence_length % length:
                raise UserError(
                    f"config.curriculum has rows of {length} tokens: they must divide config.sequence_length="
                    f"{self.sequence_length}."
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """From a (nested) dictionary, such as a ConfigDict or a run's config.json.

        Returns:
          The configuration; what `values` lacks has its default.

        Raises:
          UserError: a key or the architecture is unknown, a value is of another type, or fields do not fit together.
        """
        for plugin in _converted(values.get("plugins", ()), tuple[str, ...], "config.plugins"):
            load_plugin(plugin)
        model = ARCHITECTURES[values.get("architecture", cls.architecture)]
        task = values.get("task")
        name = task.get("name", TaskConfig.name) if isinstance(task, Mapping) else TaskConfig.name
        return _build(cls, values, "config", {"model": model, "task": TASKS[name].options})


def default_config(
    architecture: str = "transnormer_llm", preset: str = "", task: str = TaskConfig.name, **model: Any
) -> ConfigDict:
    """Every key of a run with its default, for a file in `configs/` to change.

    Args:
      architecture: a name in `ARCHITECTURES`.
      preset: a named size of it, or "" for the architecture's defaults.
      task: a name in `TASKS`.
      **model: replaces fields of the model.

    Returns:
      Nested plain values, as `Config.from_dict` takes them.

    Raises:
      UserError: the architecture, the preset or the task is unknown, or the fields do not fit together.
    """
    kind = ARCHITECTURES[architecture]
    config = Config(
        architecture=architecture,
        model=kind.preset(preset, **model) if preset else kind(**model),
        task=TASKS[task].options(name=task),
    )
    # `Config.from_dict` checks types, and says which key is wrong; ConfigDict would answer with a traceback.
    return ConfigDict(dataclasses.asdict(config), type_safe=False)


def _build(cls: Any, values: Mapping[str, Any], path: str, chosen: Mapping[str, type] | None = None) -> Any:
    """Builds a dataclass; `chosen` gives the type of a field that has a choice of types."""
    hints = typing.get_type_hints(cls)  # those of class variables too
    fields = {field.name: hints[field.name] for field in dataclasses.fields(cls)} | dict(chosen or {})
    built = {}
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"unknown config key {path}.{name}: {did_you_mean(name, fields)}")
        key, kind = f"{path}.{name}", fields[name]
        if not dataclasses.is_dataclass(kind):
            built[name] = _converted(value, kind, key)
        elif isinstance(value, Mapping):
            built[name] = _build(kind, value, key)
        else:
            raise UserError(f"{key}={value!r} must be a section of keys, as default_config() has it.")
    return cls(**built)


def _converted(value: Any, kind: Any, key: str) -> Any:
    """A value as its field's type has it: JSON and ConfigDict know lists where a dataclass has tuples."""
    if typing.get_origin(kind) is tuple:
        return _as_tuple(value, typing.get_args(kind), key)
    if kind is int and _is_number(value) and value == value // 1 and abs(value) < math.inf:
        return int(value)  # 1e3 is written for 1000
    if kind is float and _is_number(value):
        return float(value)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str):
        return value
    if typing.get_origin(kind) is Mapping and isinstance(value, Mapping):
        return dict(value)
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "a text in quotes"}
    raise UserError(f"{key}={value!r} must be {words.get(kind, 'a dictionary')}.")


def _as_tuple(value: Any, kinds: tuple[Any, ...], key: str) -> tuple[Any, ...]:
    if _is_number(value):  # one number for all layers
        value = (value,)
    if not isinstance(value, list | tuple):
        raise UserError(f"{key}={value!r} must be a list.")
    if kinds[-1] is Ellipsis:
        return tuple(_converted(one, kinds[0], key) for one in value)
    if len(value) != len(kinds):
        raise UserError(f"{key} has an entry {value!r}, which must be {len(kinds)} values.")
    return tuple(_converted(one, kind, key) for one, kind in zip(value, kinds, strict=True))


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
