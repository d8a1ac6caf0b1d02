"""Images drawn with a cache and without are the same images, follow the model, and begin with the given bytes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import commands
from tests.papers.data.local_files import write_mnist
from transnormer_jax.data import ByteTokenizer
from transnormer_jax.errors import UserError
from transnormer_jax.papers.config import BaselineConfig
from transnormer_jax.papers.data import load_examples
from transnormer_jax.papers.image_sampling import sample_from_cache, sample_images, sample_images_recomputing
from transnormer_jax.papers.models import ImageModel
from transnormer_jax.training import Config
from transnormer_jax.training.checkpoints import Checkpoints
from transnormer_jax.training.step import TrainState
from transnormer_jax.training.workdir import write_config

_NUM_BYTES = 25


def _model(attention, **fields):
    """A model whose mixtures differ from byte to byte, and its parameters."""
    fields |= {"vocab_size": 256, "tie_embeddings": False, "num_layers": 2 if attention == "t2" else 1}
    model = ImageModel(BaselineConfig.preset("tiny", attention=attention, **fields), num_mixtures=3)
    return model, _params(model)


@functools.partial(jax.jit, static_argnums=0)
def _params(model):
    params = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))["params"]
    # Biases are 0 at first, and means and scales near 0.
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), params)


@pytest.mark.slow
@pytest.mark.parametrize(("attention", "given"), [("linear", 1), ("softmax", 1), ("t2", 7)])
def test_the_cache_changes_no_byte(attention, given):
    model, params = _model(attention)
    first = jax.random.randint(jax.random.key(3), (3, given), 0, 256)
    images = sample_images(model, params, jax.random.key(4), first, num_bytes=_NUM_BYTES)
    assert images.shape == (3, _NUM_BYTES)
    assert images.dtype == jnp.uint8
    np.testing.assert_array_equal(images[:, :given], first)
    assert len(np.unique(images[:, given:])) > 10
    again = sample_images_recomputing(model, params, jax.random.key(4), first, num_bytes=_NUM_BYTES)
    np.testing.assert_array_equal(images, again)
    other = sample_images(model, params, jax.random.key(5), first, num_bytes=_NUM_BYTES)
    assert not np.array_equal(images, other)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["linear", "softmax", "t2"])
def test_byte_by_byte_the_mixtures_are_those_of_the_whole_row(attention):
    model, params = _model(attention)
    images = jax.random.randint(jax.random.key(3), (2, _NUM_BYTES), 0, 256)

    def step(cache, byte):
        mixtures, cache = model.apply({"params": params}, byte[:, None], cache)
        return cache, mixtures[:, 0]

    by_byte = jax.jit(lambda: jax.lax.scan(step, model.init_cache(2, _NUM_BYTES), images.T)[1])()
    whole = jax.jit(model.apply)({"params": params}, images)
    np.testing.assert_allclose(jnp.swapaxes(by_byte, 0, 1), whole, rtol=2e-5, atol=2e-5 * float(jnp.abs(whole).max()))


@pytest.mark.slow
def test_bytes_follow_the_mixture():
    """A head without weights draws every byte from one known distribution: nearly always the byte 100 or 200."""
    model, params = _model("linear")
    params["head"]["kernel"] = jnp.zeros_like(params["head"]["kernel"])
    means = np.array([100, 200, 0]) / 127.5 - 1
    params["head"]["bias"] = jnp.concatenate([jnp.log(jnp.array([0.7, 0.3, 1e-9])), means, jnp.full(3, -7.0)])
    first = jnp.zeros((64, 1), jnp.int32)
    images = np.asarray(sample_images(model, params, jax.random.key(0), first, num_bytes=_NUM_BYTES))
    drawn = images[:, 1:].ravel()
    assert set(np.unique(drawn)) <= {*range(97, 104), *range(197, 204)}
    share = np.mean(drawn < 150)
    assert abs(share - 0.7) < 4 * np.sqrt(0.7 * 0.3 / drawn.size)
    # No two bytes of an image, and no two images, share their random numbers.
    assert 0.2 < np.mean(images[:, 1] < 150) < 0.95
    assert all(0.2 < share < 1 for share in np.mean(images[:, 1:] < 150, axis=1))


@pytest.mark.slow
def test_lsh_attention_draws_without_a_cache():
    model, params = _model("lsh", lsh_chunk=4, lsh_rounds=1)
    first = jnp.zeros((2, 1), jnp.int32)
    images = sample_images_recomputing(model, params, jax.random.key(0), first, num_bytes=9)
    assert images.shape == (2, 9)
    assert not np.array_equal(images[0], images[1])
    with pytest.raises(UserError, match="'lsh' has no recurrent form"):
        sample_images(model, params, jax.random.key(0), first, num_bytes=9)


@pytest.mark.parametrize("sample", [sample_images, sample_images_recomputing])
def test_what_is_given_may_be_all_but_not_more(sample):
    model, params = _model("linear")
    whole = jnp.arange(10, dtype=jnp.int32).reshape(1, 10)
    np.testing.assert_array_equal(sample(model, params, jax.random.key(0), whole, num_bytes=10), whole)
    for given in (whole, whole[:, :0]):
        with pytest.raises(UserError, match="give between 1 and 9"):
            sample(model, params, jax.random.key(0), given, num_bytes=9)


@pytest.mark.slow
def test_the_memory_of_a_linear_model_does_not_grow():
    model, params = _model("linear")

    def bytes_of_loop(num_bytes):
        cache = model.init_cache(2, num_bytes)
        places = jnp.arange(1, num_bytes)
        loop = jax.jit(sample_from_cache, static_argnums=0)
        compiled = loop.lower(model, params, jax.random.key(0), jnp.zeros(2, jnp.int32), cache, places).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # Beside the bytes themselves, once as drawn and once transposed.
    assert bytes_of_loop(2000) - bytes_of_loop(20) <= 2 * 4 * 2 * 2000


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run on random images of 28 x 28 bytes whose model has learned nothing."""
    directory = tmp_path_factory.mktemp("run")
    write_mnist(directory)
    model, params = _model("linear")
    values = {
        "architecture": "baseline",
        "model": dataclasses.asdict(model.config),
        "task": {"name": "images", "num_mixtures": 3},
        "data": {"dataset": "mnist", "files": str(directory), "data_dir": str(directory / "d"), "eval_split": "test"},
    }
    config = Config.from_dict(values)
    write_config(directory, config)
    with Checkpoints(directory, config=config, tokenizer="") as checkpoints:
        checkpoints.save(TrainState(jnp.zeros((), jnp.int32), params, [jnp.zeros(())]), rows=0)
    write_config(directory / "language_model", Config())
    return directory, config


@pytest.mark.slow
def test_the_command_completes_held_out_images(workdir):
    directory, config = workdir
    output = directory / "pictures" / "samples.png"
    flags = (f"--workdir={directory}", f"--out={output}", "--count=3", "--given=300")
    status, out, err = commands.run("-m", "transnormer_jax.papers.sample_images", *flags)
    assert status == 0, err
    assert f"wrote {output}: 3 images of step 0, 300 of 784 bytes given" in out
    grid = np.asarray(Image.open(output))
    assert grid.shape == (2 * 29 - 1, 4 * 29 - 1)
    cells = np.pad(grid, ((0, 1), (0, 1))).reshape(2, 29, 4, 29).swapaxes(1, 2)[:, :, :28, :28].reshape(4, 2, 784)
    examples = load_examples(config.data, ByteTokenizer(), "test")
    for i in range(3):
        original, completed = cells[i]
        np.testing.assert_array_equal(original, examples[i]["inputs"])
        np.testing.assert_array_equal(completed[:300], original[:300])
        assert not np.array_equal(completed[300:], original[300:])
    assert np.all(cells[3] == 128)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=WORKDIR/language_model"], "task 'causal_lm': give a run of 'images'"),
        (["--workdir=WORKDIR", "--count=6"], "count is 6: the split 'test' has 5 images"),
        (["--workdir=WORKDIR", "--count=5", "--given=785"], "given is 785: an image has 784 bytes"),
        (["--workdir=WORKDIR", "--out=samples.jpg"], "give a name that ends in .png"),
    ],
)
def test_a_mistake_is_one_sentence(workdir, flags, message):
    flags = [flag.replace("WORKDIR", str(workdir[0])) for flag in flags]
    commands.assert_fails(commands.run("-m", "transnormer_jax.papers.sample_images", *flags), message)
