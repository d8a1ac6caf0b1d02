"""The released PyTorch code, timed: `benchmarks.inference` starts this file in a Python that has torch.

It is a program of its own that imports nothing from here. The code is what is in the directory `smoe/models/tnl` of
github.com/weigao266/TNL-MoE, or what the released checkpoints hold; it needs torch, transformers 4 and einops.

    PYTHON benchmarks/inference_reference.py CODE '{"fields": {...}, "context": 1024, "seconds": 5, "threads": 2}'

Greedy, batch 1, float32, with its own state in place of a cache. The last line on stdout is the result in JSON.
"""

import importlib
import importlib.machinery
import json
import os
import statistics
import sys
import time
import types
from pathlib import Path
from typing import Any


def main(code: Path, fields: dict, context: int, seconds: float, threads: int) -> dict:
    """Builds the model with random weights, reads `context` tokens, and writes tokens for `seconds`.

    Returns:
      Milliseconds to the first token, the second time that the prompt is read; the median of a token's milliseconds,
      and tokens per second by it; how many were written; parameters, and bytes of the state.
    """
    os.environ["use_triton"] = "False"  # noqa: SIM112 (its name), read when it is imported
    import torch
    import transformers

    if importlib.util.find_spec("triton") is None:
        _pretend_triton()
    sys.path.insert(0, str(code.parent))
    reference = importlib.import_module(code.name)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = reference.TransnormerForCausalLM(reference.TransnormerConfig(**fields)).eval()
    prompt = torch.randint(fields["vocab_size"], (1, context))

    def restart() -> None:  # Each layer counts positions in itself, from where it was left.
        for layer in model.model.layers:
            layer.token_mixer.offset = 0

    with torch.inference_mode():
        for _ in range(2):  # The first time it makes its N x N mask, which it keeps and does not use.
            restart()
            start = time.perf_counter()
            out = model(input_ids=prompt, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
            first = time.perf_counter() - start
        times, state = [], out.past_key_values
        while sum(times) < seconds:
            start = time.perf_counter()
            out = model(input_ids=token, past_key_values=state, use_cache=True)
            token, state = out.logits[:, -1:].argmax(-1), out.past_key_values
            token.item()
            times.append(time.perf_counter() - start)
    times = times[len(times) // 10 :]  # warm-up
    return {
        "milliseconds_to_first_token": 1e3 * first,
        "milliseconds_per_token": 1e3 * statistics.median(times),
        "tokens_per_second": 1 / statistics.median(times),
        "tokens": len(times),
        "parameters": sum(p.numel() for p in model.parameters()),
        "state_bytes": sum(kv.numel() * kv.element_size() for kv in state),
        "threads": threads,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def fields(config: Any) -> dict:
    """What the released code calls the fields of a `TransNormerLLMConfig`."""
    return {
        "vocab_size": config.vocab_size,
        "decoder_embed_dim": config.model_dim,
        "hidden_dim": config.model_dim,
        "decoder_layers": config.num_layers,
        "decoder_attention_heads": config.num_heads,
        "glu_dim": config.glu_dim,
        "linear_use_lrpe_list": [int(layer in config.lrpe_layers) for layer in range(config.num_layers)],
    }


def _pretend_triton() -> None:
    """The code imports triton even where it is told not to use it."""
    for name in ("triton", "triton.language"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
    triton, language = sys.modules["triton"], sys.modules["triton.language"]
    triton.jit, triton.language = (lambda function: function), language
    language.constexpr = object


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), **json.loads(sys.argv[2]))))
