"""What a configuration of a model refuses, before anything is computed."""

import pytest

from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormerConfig, TransNormerLLMConfig
from transnormer_jax.models.block import init_states
from transnormer_jax.papers.config import BaselineConfig
from transnormer_jax.papers.models import BiLSTMConfig
from transnormer_jax.training import Config

REFUSED = [
    ({"num_heads": 0}, "num_heads=0 must be a whole number, 1 or more."),
    ({"num_layers": 0, "lrpe_layers": ()}, "num_layers=0 must be a whole number, 1 or more."),
    ({"glu_dim": 48.0}, "glu_dim=48.0 must be a whole number, 1 or more."),
    ({"dtype": "bf16"}, "unknown dtype 'bf16': did you mean 'bfloat16'?"),
    ({"param_dtype": "int8"}, "unknown param_dtype 'int8': choose one of: bfloat16, float16, float32."),
    ({"pad_token_id": 259}, "pad_token_id=259 must be less than vocab_size=259."),
    ({"pad_token_id": -1}, "pad_token_id=-1 must be a whole number, 0 or more."),
    ({"num_heads": 3}, "multiple of num_heads=3."),
    ({"lrpe_layers": (7,)}, "must be in 0"),
    ({"remat": "some"}, "unknown remat 'some'"),
    ({"layers": 3}, "unknown model field 'layers'"),
    *(({field: "swish"}, f"unknown {field} 'swish'") for field in ("norm", "glu_activation", "decay")),
]
REFUSED_BY_BLOCKS = [
    ({"num_layers": 0}, "num_layers=0 must be a whole number, 1 or more."),
    ({"dropout": 1.5}, "dropout=1.5 must be at least 0 and less than 1."),
    ({"dtype": "float64"}, "unknown dtype 'float64': did you mean 'float16'?"),
    ({"attention": "cosformer", "max_length": 0}, "max_length=0 must be a whole number, 1 or more."),
    ({"attention": "lsch"}, "unknown attention 'lsch': did you mean 'lsh'?"),
]
REFUSED_BASELINES = [
    ({"lsh_buckets": 3}, "lsh_buckets=3 must be even, since a rotation makes buckets in pairs."),
    ({"linformer_dim": (0,)}, "linformer_dim=(0,) must be whole numbers, 1 or more."),
    ({"attention": "linformer"}, "set causal=False, or choose another attention."),
    (
        {"attention": "linformer", "causal": False, "linformer_sharing": "layerwise", "linformer_dim": (4, 8)},
        "linformer_dim=(4, 8) are several: give one.",
    ),
    (
        {"attention": "linformer", "causal": False, "linformer_sharing": "layerwise", "reversible": True},
        "cannot share one projection among layers: set linformer_sharing to another.",
    ),
]


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [(TransNormerLLMConfig, *row) for row in REFUSED]
    + [(TransNormerConfig, *row) for row in REFUSED_BY_BLOCKS]
    + [(BaselineConfig, *row) for row in REFUSED_BASELINES],
)
def test_what_makes_no_model_is_refused(cls, fields, message):
    with pytest.raises(UserError) as caught:
        cls.preset("tiny", **fields)
    assert message in str(caught.value)


def test_presets_have_suggestions():
    with pytest.raises(UserError, match="did you mean '385m'"):
        TransNormerLLMConfig.preset("385M")


def test_a_bilstm_is_checked_alike():
    with pytest.raises(UserError, match="unknown dtype 'half': choose one of"):
        BiLSTMConfig(dtype="half")


@pytest.mark.parametrize("given", [[8], 8])
def test_one_number_and_a_list_are_a_tuple(given):
    config = BaselineConfig.preset("tiny", linformer_dim=given)
    assert config == BaselineConfig.preset("tiny", linformer_dim=(8,))
    assert hash(config) == hash(BaselineConfig.preset("tiny", linformer_dim=(8,)))


def test_a_mixer_with_options_names_the_architecture_that_has_them():
    with pytest.raises(UserError, match=r"config.architecture='baseline' has: begin .* default_config\('baseline'\)"):
        init_states(TransNormerConfig.preset("tiny", attention="lsh"), 1)


@pytest.mark.parametrize("key", ["presets", "init_std"])
def test_what_is_no_field_is_an_unknown_key(key):
    with pytest.raises(UserError, match=f"unknown config key config.model.{key}: "):
        Config.from_dict({"architecture": "transnormer", "model": {key: 1}})
