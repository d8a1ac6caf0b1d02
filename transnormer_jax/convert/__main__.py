"""Converts TransNormerLLM checkpoints in Hugging Face's layout into workdirs, and back.

    python -m transnormer_jax.convert --from_hugging_face=DIR --workdir=DIR
    python -m transnormer_jax.convert --to_hugging_face=DIR --workdir=DIR
    python -m transnormer_jax.convert --workdir=DIR --verify=reference.npz

`python -m transnormer_jax.generate` and `eval.py` read such a workdir. --to_hugging_face also writes a model card,
filled in as far as the run's data allow. --verify compares the logits with reference logits computed elsewhere: an .npz
file with `ids` [B, N] and `logits` [B, N, V]. The last line of stdout is a summary in JSON.
"""

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from transnormer_jax import command, storage
from transnormer_jax.convert.hugging_face import empty_params, load_hugging_face, save_hugging_face
from transnormer_jax.convert.model_card import model_card
from transnormer_jax.data import copy_tokenizer, find_chat_template, tokenizer_exists
from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig
from transnormer_jax.run_flags import RunFlags, define_run_flags
from transnormer_jax.training.parameters import restore_params
from transnormer_jax.training.workdir import chat_template, load_params, write_model

_FROM = flags.DEFINE_string("from_hugging_face", "", "Directory to import: config.json, weights, tokenizer.")
_TO = flags.DEFINE_string("to_hugging_face", "", "Directory to create.")
_RUN = define_run_flags("Workdir to create, or to read for export or --verify.")
_VERIFY = flags.DEFINE_string("verify", "", "File .npz with ids and reference logits to compare with.")


def main() -> None:
    """Converts."""
    workdir, given = _RUN.workdir, [bool(x) for x in (_FROM.value, _TO.value, _VERIFY.value)]
    if not any(given) or (_FROM.value and _TO.value):
        raise UserError("give one of --from_hugging_face=DIR and --to_hugging_face=DIR, or --verify=FILE.")
    report: dict[str, Any] = {"workdir": str(workdir)}
    if _FROM.value:
        report |= _read(storage.local_copy(_FROM.value), workdir)
    if _TO.value:
        report |= _write(_RUN, storage.as_path(_TO.value))
    if _VERIFY.value:
        report |= _verify(_RUN, storage.local_copy(_VERIFY.value))
    print(json.dumps(report))


def _read(directory: Path, workdir: storage.AnyPath) -> dict[str, Any]:
    storage.check_workdir(workdir)
    if (workdir / "config.json").exists() or (workdir / "checkpoints").exists():
        raise UserError(f"{str(workdir)!r} holds a run already: give a new --workdir.")
    config, params = load_hugging_face(directory)
    carried = copy_tokenizer(directory, workdir / "tokenizer")
    if not carried:
        print(f"warning: {str(directory)!r} holds no tokenizer; put its files into {str(workdir / 'tokenizer')!r}.")
    write_model(workdir, config, jax.device_put(params))  # Orbax would copy arrays of NumPy before it writes them.
    num_parameters = sum(x.size for x in jax.tree.leaves(params))
    return {"parameters": num_parameters, "dtype": config.param_dtype, "tokenizer": carried}


def _write(run: RunFlags, target: storage.AnyPath) -> dict[str, Any]:
    config = _model_config(run)
    step, params = restore_params(run.workdir, empty_params(config), run.step)
    name = run.config.data.tokenizer
    card = model_card(run.workdir, step, sum(x.size for x in jax.tree.leaves(params)))
    with storage.written_locally(target) as directory:
        save_hugging_face(directory, config, params, _local(name) if tokenizer_exists(name) else None)
        template = chat_template(run.config)
        if template and find_chat_template(directory) is None:
            (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
        (directory / "README.md").write_text(card, encoding="utf-8")
    return {"to_hugging_face": str(target), "step": step}


def _local(tokenizer: str) -> str:
    return tokenizer if tokenizer == "bytes" else str(storage.local_copy(tokenizer))


def _verify(run: RunFlags, file: Path) -> dict[str, Any]:
    try:
        with np.load(file) as arrays:
            ids, expected = np.asarray(arrays["ids"], np.int32), np.asarray(arrays["logits"], np.float32)
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{str(file)!r} is no .npz file with ids [B, N] and logits [B, N, V] ({error}).") from error
    config = _model_config(run)
    _, params = load_params(run.workdir, run.config, step=run.step)
    model = TransNormerLLM(dataclasses.replace(config, dtype="float32"))
    found = np.asarray(jax.jit(model.apply)({"params": params}, ids))
    if found.shape != expected.shape:
        raise UserError(
            f"{str(file)!r} has logits {expected.shape}, the model gives {found.shape}: it is another model's."
        )
    return {"largest_logit_difference": float(np.abs(found - expected).max())}


def _model_config(run: RunFlags) -> TransNormerLLMConfig:
    model = run.config.model
    if not isinstance(model, TransNormerLLMConfig):
        raise UserError(
            f"{str(run.workdir)!r} holds no TransNormerLLM, the only model that has a form on Hugging Face."
        )
    return model


if __name__ == "__main__":
    command.run(main)
