"""Continues prompts with a trained model.

    python -m transnormer_jax.generate --workdir=runs/quickstart --prompt="Once upon a time"

Prints each prompt and its continuation. Several prompts are processed together:

    python -m transnormer_jax.generate --workdir=runs/quickstart --prompt="One" --prompt="Two" --temperature=0 --stop=.
"""

from pathlib import Path
from typing import Any

from absl import flags

from transnormer_jax import command
from transnormer_jax.errors import UserError
from transnormer_jax.run_flags import define_int8, define_run_flags

_RUN = define_run_flags()
_INT8 = define_int8()
_PROMPT = flags.DEFINE_multi_string("prompt", [], "Text to continue")
_PROMPT_FILE = flags.DEFINE_multi_string("prompt_file", [], "File with one prompt; a line break at its end is dropped")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 64, "Maximum length of a continuation, in tokens.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0 always takes the likeliest token; 1 samples as trained.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Sample among the k likeliest tokens only; 0 means no limit.")
_TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "Sample among the likeliest tokens of this total probability; 1 means no limit."
)
_REPETITION_PENALTY = flags.DEFINE_float(
    "repetition_penalty", 1.0, "Values above 1 make tokens of the prompt and of the text so far less likely."
)
_STOP = flags.DEFINE_multi_string("stop", [], "Text that ends a continuation and is removed from it")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the first prompt; each further prompt adds 1.")
_STREAM = flags.DEFINE_bool("stream", True, "Print a single prompt's continuation while it is generated.")

_SEPARATOR = "-" * 40


def main() -> None:
    """Generates."""
    prompts = _PROMPT.value + [_read_prompt(Path(path)) for path in _PROMPT_FILE.value]
    if not prompts:
        raise UserError('there is nothing to continue: give --prompt="..." or --prompt_file=FILE.')
    generator = _RUN.load_generator(int8=_INT8.value)
    arguments: dict[str, Any] = {
        "max_new_tokens": _MAX_NEW_TOKENS.value,
        "temperature": _TEMPERATURE.value,
        "top_k": _TOP_K.value,
        "top_p": _TOP_P.value,
        "repetition_penalty": _REPETITION_PENALTY.value,
        "stop": _STOP.value,
        "seed": _SEED.value,
    }
    if _STREAM.value and len(prompts) == 1:
        pieces = generator.stream(prompts, **arguments)
        print(prompts[0], end="", flush=True)
        for [piece] in pieces:
            print(piece, end="", flush=True)
        print()
    else:
        texts = generator.generate(prompts, **arguments)
        wholes = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
        print(f"\n{_SEPARATOR}\n".join(wholes))


def _read_prompt(path: Path) -> str:
    try:
        prompt = path.read_text(encoding="utf-8-sig").removesuffix("\n")
    except OSError as error:
        raise UserError(f"cannot read the prompt file {str(path)!r}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the prompt file {str(path)!r} is not UTF-8: save it as UTF-8.") from error
    if not prompt:
        raise UserError(f'the prompt file {str(path)!r} is empty: write a prompt into it, or give --prompt="".')
    return prompt


if __name__ == "__main__":
    command.run(main)
