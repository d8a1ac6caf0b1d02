"""Evaluation of whole documents equals scoring each document alone, on one device and on eight."""

import jax
import numpy as np
import pytest

from tests.data.corpus import ListDocuments
from transnormer_jax.data import ByteTokenizer
from transnormer_jax.distributed import MeshConfig, make_mesh
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig
from transnormer_jax.tasks import CausalLM
from transnormer_jax.training.config import EvaluationConfig
from transnormer_jax.training.evaluators import DocumentEvaluator
from transnormer_jax.training.placement import place_params

TASK = CausalLM(TransNormerLLM(TransNormerLLMConfig.preset("tiny", num_layers=1, init_std=0.2, lrpe_layers=(0,))))


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return ListDocuments(rng.integers(3, 259, length) for length in (1, 5, 150, 64, 63, 65, 20, 90, 7, 128, 31))


@pytest.mark.slow
@pytest.mark.parametrize("mesh_config", [MeshConfig(), MeshConfig(data=1, fsdp=2, context=2, tensor=2)])
def test_windows_equal_documents_alone(documents, mesh_config):
    params = jax.jit(TASK.init)(jax.random.key(0))
    score = jax.jit(TASK.loss_and_metrics)
    loss = 0.0
    for tokens in documents.documents:
        inputs, targets, ids = np.zeros((3, 1, 160), np.int32)
        inputs[0, : len(tokens) + 1] = [1, *tokens]
        targets[0, : len(tokens) + 1] = [*tokens, 2]
        ids[0, : len(tokens) + 1] = 1
        loss += float(score(params, {"inputs": inputs, "targets": targets, "segment_ids": ids}).loss)

    mesh = make_mesh(mesh_config)
    evaluator = DocumentEvaluator(TASK, documents, ByteTokenizer(), EvaluationConfig(batch_size=8, window=32), mesh)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, jax.tree.map(lambda x: x.sharding, place_params(params, mesh)))
        result = evaluator(placed)
        again = evaluator(placed)
    assert result | {"seconds": 0} == again | {"seconds": 0}
    assert evaluator._step._cache_size() == 1  # one compilation, for all windows of both calls
    tokens = int(documents.lengths.sum()) + len(documents)
    assert (result["tokens"], result["documents"], result["bytes"]) == (tokens, 11, tokens - 11)
    assert result["loss"] * tokens == pytest.approx(loss, rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(loss / np.log(2) / result["bytes"], rel=1e-5)
    assert result["perplexity"] == pytest.approx(np.exp(loss / tokens), rel=1e-4)
