"""The commands for the papers' claims, at tiny sizes: the matrices that they read, their measures, what they write."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import dilution, gradient_bounds, gradient_spread, linformer_speed, spectrum, steps_per_second
from benchmarks.attention_maps import MAPPED, Caught, catch, check_mapped, distribution, mix, places, scores, visible
from benchmarks.attention_subjects import load_subjects, text_config
from benchmarks.measure import Measurement
from tests.commands import assert_fails
from tests.commands import run as run_command
from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormer, TransNormerConfig
from transnormer_jax.tasks import CausalLM, MaskedLM
from transnormer_jax.training.checkpoints import Checkpoints
from transnormer_jax.training.problem import make_task
from transnormer_jax.training.step import TrainState
from transnormer_jax.training.workdir import write_config


def every_attention(*, causal: bool) -> CausalLM:
    """A model in which each layer has another attention."""
    config = TransNormerConfig.preset(
        "tiny",
        num_layers=len(MAPPED),
        attention=",".join(MAPPED),
        causal=causal,
        vocab_size=50,
        backend="quadratic",  # the quickest to compile
    )
    return (CausalLM if causal else MaskedLM)(TransNormer(config))


def random_params(task: CausalLM) -> dict:
    """Parameters with which nothing is zero, and quicker to make than the right ones."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return jax.tree.map(lambda x: generator.normal(scale=0.2, size=x.shape).astype(x.dtype), shapes)


def packed_batch() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    ids = np.array([[1] * 21 + [2] * 16, [1] * 30 + [0] * 7], np.int32)
    inputs, targets = generator.integers(1, 50, (2, *ids.shape), np.int32)
    return {"inputs": inputs, "targets": targets, "segment_ids": ids}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("corpus")
    file = directory / "corpus.txt"
    file.write_text("".join(f"line {i} says {i} times {i % 7} is {i * (i % 7)}\n" for i in range(200)))
    return {"files": str(file), "data_dir": str(directory / "datasets")}


@pytest.fixture(scope="module")
def workdir(corpus, tmp_path_factory) -> Path:
    config = text_config("diag_t2,linear", **corpus, length=32, num_layers=2, model_dim=16, num_heads=2)
    directory = tmp_path_factory.mktemp("runs") / "small"
    write_config(directory, config)
    params = jax.jit(make_task(config).init)(jax.random.key(0))
    with Checkpoints(directory, config=config, tokenizer="bytes-1") as checkpoints:
        checkpoints.save(TrainState(jnp.array(2), params, {"count": jnp.zeros(())}), rows=0)
    return directory


def record_of(output: Path) -> dict:
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    record = json.loads(output.read_text())
    assert record["command"] == "the command"
    assert {"device_kind", "jax", "date_utc"} <= record["environment"].keys()
    return record


@pytest.mark.parametrize("causal", [True, False])
def test_the_matrices_are_those_of_the_model(causal):
    """Matrix times values is what the output projection reads; and the scores' gradients lead to the parameters'."""
    task, batch = every_attention(causal=causal), packed_batch()
    config, params = task.model.config, random_params(task)
    real = batch["segment_ids"] != 0

    @jax.jit
    def look(params, batch):
        _, caught = catch(lambda: task.sums(params, batch))
        mixed, biases, rows = [], [], []
        loss, by_params, by_scores = gradient_spread.loss_and_gradients(task, config, params, batch)
        ids = batch["segment_ids"]
        for layer, word in enumerate(config.attentions):
            passed = Caught(**caught[layer])
            seen = visible(config, layer, ids)

            def from_queries(q, layer=layer, passed=passed):
                return scores(config, layer, params, passed._replace(q=q), places(ids))

            s, pull_back = jax.vjp(from_queries, passed.q)
            mixed.append((mix(word, s, seen, passed.v), passed.mixed))
            own = by_params["stack"][f"layers_{layer}"]["mix"]["attention"]["q"]["bias"]
            biases.append((jnp.sum(pull_back(by_scores[layer])[0], axis=(0, 1)), own))
            rows.append((distribution(word, s, seen), seen))
        return loss, mixed, biases, rows

    loss, mixed, biases, rows = look(params, batch)
    sums = jax.jit(task.sums)(params, batch)
    np.testing.assert_allclose(loss, sums.loss / sums.predictions, rtol=1e-5)
    for word, (ours, theirs), (bias, expected), (p, seen) in zip(config.attentions, mixed, biases, rows, strict=True):
        np.testing.assert_allclose(ours[real], theirs[real], rtol=1e-4, atol=1e-5, err_msg=word)
        np.testing.assert_allclose(bias, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max(), err_msg=word)
        assert np.all(np.asarray(p)[~np.broadcast_to(seen, p.shape)] == 0), word
        total = np.moveaxis(np.asarray(p).sum(axis=-1), 1, 2)[real]
        # relu and the T1 features may leave a row empty; nothing else does.
        expected_total = np.where(total > 0, 1, 0) if word == "diag_t1" else np.ones_like(total)
        np.testing.assert_allclose(total, expected_total, rtol=1e-4, err_msg=word)


def test_models_without_matrices_are_refused():
    with pytest.raises(UserError, match="attention 'lsh' has no N x N matrix"):
        check_mapped(TransNormerConfig.preset("tiny", attention="lsh"))
    with pytest.raises(UserError, match="reversible=False"):
        check_mapped(TransNormerConfig.preset("tiny", attention="softmax", reversible=True))


def test_accumulated_attention_grows_from_a_token_to_all():
    p = jax.nn.softmax(jax.random.normal(jax.random.key(0), (2, 37, 37)))
    curves = np.stack([dilution.accumulated(p, share) for share in np.linspace(0, 1, 75)])
    np.testing.assert_allclose(curves[0], np.diagonal(p, axis1=1, axis2=2), rtol=1e-6)
    np.testing.assert_allclose(curves[-1], 1, rtol=1e-5)
    assert np.all(np.diff(curves, axis=0) > -1e-6)
    # In the middle of a row, 9 of 37 tokens are four on either side.
    np.testing.assert_allclose(dilution.accumulated(p, 9 / 37)[:, 18], p[:, 18, 14:23].sum(axis=1), rtol=1e-5)


def test_the_spectrum_counts_the_rank():
    n = 16
    np.testing.assert_allclose(spectrum.cumulative(np.eye(n)), np.arange(1, n + 1) / n, rtol=1e-12)
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 3, n, 4))
    curves = spectrum.cumulative(a @ np.swapaxes(b, 1, 2))
    assert curves.shape == (3, n)
    assert np.all(curves[:, 2] < 0.999)
    np.testing.assert_allclose(curves[:, 3:], 1, rtol=1e-12)


def test_dilution_and_spectrum_of_a_trained_model(workdir, tmp_path):
    output = tmp_path / "new" / "dilution.json"
    settings = dilution.Settings(workdirs=(str(workdir),), rows=2, length=24, shares=(0.25, 0.5, 1.0))
    summary = dilution.run(settings, output, "the command")
    (model,) = record_of(output)["models"]
    assert (model["step"], model["num_tokens"], model["attentions"]) == (2, 24, ["diag_t2", "linear"])
    for layer in (*model["layers"], model["uniform"]):
        assert layer == sorted(layer)
        assert layer[-1] == pytest.approx(1, rel=1e-5)
    assert model["uniform"][:2] == pytest.approx([0.25, 0.5])
    assert summary.keys() == {"output", "small diag_t2,linear"}

    output = tmp_path / "spectrum.json"
    summary = spectrum.run(spectrum.Settings(workdirs=(str(workdir),), rows=2, length=24), output, "the command")
    (model,) = record_of(output)["models"]
    for layer, needed in zip(model["layers"], model["values_for_mass"], strict=True):
        assert len(layer) == 24
        assert layer[-1] == 1
        assert layer[needed - 1] >= 0.9 > (layer[needed - 2] if needed > 1 else 0)
    assert summary["small diag_t2,linear"]["num_tokens"] == 24


def test_rows_that_are_too_short_are_refused(corpus):
    config = text_config("softmax", **corpus, length=8192, num_layers=1, model_dim=16, num_heads=2)
    with pytest.raises(UserError, match="0 rows have 8192 tokens: ask for fewer"):
        load_subjects((), [config], 1, 8192)


def test_derivatives_stay_within_their_bounds(tmp_path):
    output = tmp_path / "bounds.json"
    settings = gradient_bounds.Settings(scales=(1e-4, 1e-2, 1.0, 30.0), num_tokens=12, head_dim=4)
    assert gradient_bounds.run(settings, output, "the command")["within_bounds"]
    first, second, *_ = rows = record_of(output)["rows"]
    # As the square of the scale, since both q and k have it.
    assert first["1+elu derivative"] == pytest.approx(1e4 * second["1+elu derivative"], rel=1e-6)
    assert max(row["softmax derivative"] for row in rows) > 0.2
    assert 0.5 / settings.norm_eps**0.5 < first["norm derivative"] < 1.5 / settings.norm_eps**0.5
    for row in rows:
        assert row["softmax derivative"] <= 0.25


def test_the_spread_of_gradients_is_taken_after_the_warm_up(corpus, tmp_path):
    output = tmp_path / "spread.json"
    settings = gradient_spread.Settings(
        **corpus,
        attentions=("softmax", "norm_t2"),
        steps=6,
        warmup_steps=2,
        batch_size=4,
        length=32,
        num_layers=1,
        model_dim=16,
    )
    summary = gradient_spread.run(settings, output, "the command")
    for word, model in record_of(output)["attentions"].items():
        assert np.shape(model["loss"]) == (6,)
        for kind in gradient_spread.KINDS:
            norms = np.array(model["norms"][kind])
            assert norms.shape == (6, 1)
            assert np.all(norms > 0)
            assert summary[word][kind] == pytest.approx(norms[2:].std() / norms[2:].mean(), abs=1e-4)
        assert summary[word]["published"] == gradient_spread.PUBLISHED[word]


def test_steps_per_second_are_set_beside_softmax(tmp_path, capsys):
    output = tmp_path / "steps.json"
    settings = steps_per_second.Settings(
        attentions=("softmax", "linear"), num_tokens=(64,), preset="tiny", seconds=1e-3
    )
    summary = steps_per_second.run(settings, output, "the command")
    rows = {(row["attention"], row["computation"]): row for row in record_of(output)["rows"]}
    assert len(rows) == 4
    for computation in steps_per_second.COMPUTATIONS:
        ours, softmax = rows["linear", computation], rows["softmax", computation]
        assert ours["steps_per_second"] == pytest.approx(1e3 / ours["median_ms"])
        ratio = ours["steps_per_second"] / softmax["steps_per_second"]
        assert ours["over_softmax"] == pytest.approx(ratio)
        assert summary[computation] == {"linear over softmax at 64": round(ratio, 2)}
    assert capsys.readouterr().out.count("skipped") == 0


def test_the_linformer_is_set_beside_softmax_and_the_paper(tmp_path, capsys):
    output = tmp_path / "linformer.json"
    settings = linformer_speed.Settings(num_tokens=(256,), projected=(64, 256), preset="tiny", seconds=1e-3)
    summary = linformer_speed.run(settings, output, "the command")
    softmax, linformer = record_of(output)["rows"]  # k = 256 is more than half of n
    assert (softmax["projected"], linformer["projected"]) == (0, 64)
    assert linformer["speed"] == pytest.approx(softmax["median_ms"] / linformer["median_ms"])
    assert linformer["memory"] == pytest.approx(softmax["compiler_temp_bytes"] / linformer["compiler_temp_bytes"])
    assert linformer["memory"] > 1  # the N x N matrix, which one has and the other has not
    assert summary["memory"] == {"n = 256, k = 64": round(linformer["memory"], 2)}

    row = linformer_speed.Row(1024, 512, Measurement(skipped="no room"))
    assert str(row).split() == ["1024", "k", "=", "512", "1.30", "1.80", "skipped:", "no", "room"]


def test_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="unknown preset 'papr': did you mean 'paper'"):
        steps_per_second.Settings(preset="papr")
    with pytest.raises(UserError, match="length is 0: give positive numbers"):
        dilution.Settings(length=0)
    with pytest.raises(UserError, match=r"ends in \.json"):
        gradient_bounds.run(gradient_bounds.Settings(), tmp_path / "bounds.png", "")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another output"):
        gradient_bounds.run(gradient_bounds.Settings(), tmp_path / "file" / "bounds.json", "")


def test_flags_are_the_settings(tmp_path):
    module = ("-m", "benchmarks.gradient_bounds")
    assert_fails(run_command(*module, "--scales=0.1,small"), "scales is ['0.1', 'small']: give numbers")
    output = tmp_path / "bounds.json"
    status, out, err = run_command(*module, "--scales=0.1,2", "--num_tokens=8", f"--output={output}")
    assert status == 0, err
    record = json.loads(output.read_text())
    assert record["settings"] | {"norm_eps": 0} == {
        "scales": [0.1, 2.0],
        "num_tokens": 8,
        "head_dim": 16,
        "norm_eps": 0,
    }
    assert record["command"].startswith("python -m benchmarks.gradient_bounds --scales=0.1,2")
    assert json.loads(out.splitlines()[-1])["output"] == str(output)
