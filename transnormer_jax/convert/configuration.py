"""Converts between the configuration of a released TransNormerLLM (`config.json`) and ours."""

from collections.abc import Mapping
from typing import Any

from transnormer_jax.errors import UserError, did_you_mean
from transnormer_jax.models import TransNormerLLMConfig

# Their names of the activation of queries and keys -> ours. Any other name means no activation to them.
_ACTIVATIONS = {"swish": "silu", "silu": "silu", "leak": "leaky_relu", "sine": "sin"} | {
    name: name for name in ("relu", "gelu", "elu", "1+elu", "2+elu", "sigmoid", "identity")
}
_NORMS = {"simplermsnorm": "simple_rms_norm", "layernorm": "layer_norm"}
_EPS = {"simple_rms_norm": 1e-6, "layer_norm": 1e-5}

# What a config.json may leave out, as the class of the released code has it.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 64000,
    "pad_token_id": 0,
    "init_std": 0.02,
    "decoder_embed_dim": 1024,
    "decoder_layers": 24,
    "decoder_attention_heads": 8,
    "no_scale_embedding": False,
    "norm_type": "simplermsnorm",
    "linear_use_lrpe_list": [],
    "hidden_dim": 1024,
    "linear_act_fun": "silu",
    "glu_dim": 2816,
    "bias": False,
    "tie_word_embeddings": True,
}

# Where transformers finds their code, if it is allowed to run it (trust_remote_code=True): repository--module.class.
_AUTO_MAP = {
    "AutoConfig": "OpenNLPLab/TransNormerLLM-385M--configuration_transnormer.TransnormerConfig",
    "AutoModelForCausalLM": "OpenNLPLab/TransNormerLLM-385M--modeling_transnormer.TransnormerForCausalLM",
}

# What theirs always does: fields of ours that have one value only.
_FIXED = {
    "decay": "released",
    "decay_temperature": True,
    "use_gate": True,
    "glu_activation": "identity",
    "sinusoidal_position": False,
}


def read_configuration(fields: Mapping[str, Any], dtype: str) -> TransNormerLLMConfig:
    """Our configuration, of the content of a `config.json` and the dtype of the tensors.

    Raises:
      UserError: it is not a TransNormerLLM's, or has a value that no released model has.
    """
    kind = fields.get("model_type", "transnormer")
    if kind != "transnormer" or "gate_dim" in fields:
        raise UserError(f"config.json is of a {kind!r} that is no TransNormerLLM of the 385M, 1B and 7B kind.")
    given = _DEFAULTS | dict(fields)
    if given["hidden_dim"] != given["decoder_embed_dim"]:
        raise UserError(
            f"hidden_dim={given['hidden_dim']} is not decoder_embed_dim={given['decoder_embed_dim']}: the released "
            "code cannot run that either; correct config.json."
        )
    act = given["linear_act_fun"]
    if act == "exp":
        raise UserError("linear_act_fun='exp' is broken in the released code and has no equal here.")
    norm = _NORMS.get(given["norm_type"], "layer_norm")
    lrpe = [layer for layer, used in enumerate(given["linear_use_lrpe_list"]) if used]
    return TransNormerLLMConfig(
        vocab_size=given["vocab_size"],
        num_layers=given["decoder_layers"],
        model_dim=given["decoder_embed_dim"],
        num_heads=given["decoder_attention_heads"],
        glu_dim=given["decoder_embed_dim"] if given["glu_dim"] == -1 else given["glu_dim"],
        lrpe_layers=tuple(lrpe),
        activation=_ACTIVATIONS.get(act, "identity"),
        use_bias=given["bias"],
        scale_embedding=not given["no_scale_embedding"],
        tie_embeddings=given["tie_word_embeddings"],
        norm=norm,
        norm_eps=_EPS[norm],
        init_std=given["init_std"],
        pad_token_id=given["pad_token_id"],
        dtype=dtype,
        param_dtype=dtype,
    )


def write_configuration(config: TransNormerLLMConfig, *, bos_id: int = 1, eos_id: int = 2) -> dict[str, Any]:
    """The content of a `config.json`, for the released code.

    Args:
      bos_id: of the tokenizer, as `eos_id`; the defaults are those of the released code.

    Raises:
      UserError: the model has something that the released code cannot do.
    """
    for name, value in _FIXED.items():
        if getattr(config, name) != value:
            raise UserError(
                f"{name}={getattr(config, name)!r} cannot be written: the released code knows {value!r} only."
            )
    norms = {ours: theirs for theirs, ours in _NORMS.items()}
    if config.norm not in norms or config.norm_eps != _EPS[config.norm]:
        raise UserError(
            f"norm={config.norm!r} with norm_eps={config.norm_eps} cannot be written: the released code knows "
            "simple_rms_norm with 1e-6 and layer_norm with 1e-5."
        )
    activations = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    act = "silu" if config.activation == "swish" else config.activation
    if act not in activations:
        raise UserError(f"activation {act!r} cannot be written: {did_you_mean(act, activations)}")
    return {
        "architectures": ["TransnormerForCausalLM"],
        "auto_map": _AUTO_MAP,
        "model_type": "transnormer",
        "torch_dtype": config.param_dtype,
        "vocab_size": config.vocab_size,
        "pad_token_id": config.pad_token_id,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "init_std": config.init_std,
        "decoder_embed_dim": config.model_dim,
        "decoder_layers": config.num_layers,
        "decoder_attention_heads": config.num_heads,
        "hidden_dim": config.model_dim,
        "glu_dim": config.glu_dim,
        "no_scale_embedding": not config.scale_embedding,
        "norm_type": norms[config.norm],
        "linear_use_lrpe_list": [int(layer in config.lrpe_layers) for layer in range(config.num_layers)],
        "linear_act_fun": activations[act],
        "bias": config.use_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
    }
