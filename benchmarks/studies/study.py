"""What a study is: one config, a reduced budget, and a table of variants that differ from it in a word or two."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from transnormer_jax.training.config import Config

Overrides = Mapping[str, Any]  # "model.attention" -> "linear"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
      changes: keys of the config -> values, on top of the study's budget.
      published: what a paper reports for it, at its own budget.
      config: the file, where it is not the study's; of the budget, its keys outside `model.` are then kept.
    """

    changes: Overrides
    published: float | None = None
    config: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
    """Variants trained with the same data, steps and seed.

    Attributes:
      name: on the command line and of the files.
      config: the published experiment, a file in `configs/`.
      budget: what is reduced, keys of the config -> values.
      variants: label -> variant.
      metric: the held-out figure that is compared, as `metrics.jsonl` has it without "eval/".
      higher_is_better: of the metric.
      published: what the published figures are.
      reduced: what was reduced, in words.
      files: the data's place in the directory of all data ("." is the directory itself), or "" if it needs none.
      references: lines to compare with, from the config of the first variant.
    """

    name: str
    config: str
    budget: Overrides
    variants: Mapping[str, Variant]
    metric: str
    higher_is_better: bool
    published: str
    reduced: str
    files: str = ""
    references: Callable[[Config], Mapping[str, float]] = lambda config: {}

    def overrides(self, variant: Variant) -> dict[str, Any]:
        """All overrides of a variant."""
        kept = {key: value for key, value in self.budget.items() if not (variant.config and key.startswith("model."))}
        return {**kept, **variant.changes}


def attentions(published: Mapping[str, float], *names: str) -> dict[str, Variant]:
    """Variants that differ in the word `attention` alone."""
    return {name: Variant({"model.attention": name}, published.get(name)) for name in names}
