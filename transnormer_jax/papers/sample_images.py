"""Generates images with a trained model, from the first bytes of held-out images.

    python -m transnormer_jax.papers.sample_images --workdir=runs/mnist --out=samples.png

With `--given=392`, half of an MNIST digit, each image is shown beside the held-out image that it completes.
"""

import math
from pathlib import Path

import jax
import numpy as np
import numpy.typing as npt
from absl import flags

from transnormer_jax import command, storage
from transnormer_jax.errors import UserError
from transnormer_jax.models.block import has_states
from transnormer_jax.papers.data import load_examples
from transnormer_jax.papers.image_sampling import sample_images, sample_images_recomputing
from transnormer_jax.papers.tasks import AutoregressiveImages
from transnormer_jax.run_flags import define_run_flags
from transnormer_jax.tasks import Params
from transnormer_jax.training import Config

_RUN = define_run_flags('Directory of a run of train.py with the task "images".')
_COUNT = flags.DEFINE_integer("count", 16, "Number of images.", lower_bound=1)
_GIVEN = flags.DEFINE_integer("given", 1, "Bytes taken from each held-out image; the model generates the rest.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random numbers.")
_OUT = flags.DEFINE_string("out", "samples.png", "PNG file to write.")

Images = npt.NDArray[np.uint8]

# Number of bytes -> height, width and channels.
_SHAPES = {784: (28, 28, 1), 1024: (32, 32, 1), 3072: (32, 32, 3)}


def main() -> None:
    """Draws."""
    config, out = _RUN.config, storage.as_path(_OUT.value)
    if config.task.name != "images":
        raise UserError(
            f"{str(_RUN.workdir)!r} holds a model of the task {config.task.name!r}: give a run of 'images'."
        )
    if out.suffix != ".png":
        raise UserError(f"--out is {str(out)!r}: give a name that ends in .png.")
    run = _RUN.load()
    examples = load_examples(config.data, run.tokenizer, config.data.eval_split)
    if _COUNT.value > len(examples):
        raise UserError(f"count is {_COUNT.value}: the split {config.data.eval_split!r} has {len(examples)} images.")
    held_out = np.stack([examples[i]["inputs"] for i in range(_COUNT.value)]).astype(np.uint8)
    if held_out.shape[1] not in _SHAPES:
        raise UserError(
            f"images of {held_out.shape[1]} bytes have no known shape: choose a dataset of {sorted(_SHAPES)} bytes."
        )
    images = complete(config, run.params, held_out, given=_GIVEN.value, seed=_SEED.value)
    with storage.written_locally(out) as file:
        save_grid(images if _GIVEN.value == 1 else beside(images, held_out), file)
    print(f"wrote {out}: {_COUNT.value} images of step {run.step}, {_GIVEN.value} of {images.shape[1]} bytes given")


def complete(config: Config, params: Params, images: Images, *, given: int, seed: int) -> Images:
    """Draws all but the first bytes of each image.

    Args:
      config: of the run.
      params: of its model.
      images: [B, N] uint8.
      given: number of bytes that stay.
      seed: of the random numbers.

    Returns:
      [B, N] uint8.

    Raises:
      UserError: `given` is not between 1 and N.
    """
    if not 1 <= given <= images.shape[1]:
        raise UserError(f"given is {given}: an image has {images.shape[1]} bytes, and the model needs the first one.")
    model = AutoregressiveImages.from_config(config).model
    cached = has_states(model.config)
    sample = sample_images if cached else sample_images_recomputing
    first = images[:, :given].astype(np.int32)
    return np.asarray(sample(model, params, jax.random.key(seed), first, num_bytes=images.shape[1]))


def beside(images: Images, originals: Images) -> Images:
    """Alternates images with their originals: [B, N] twice to [2 B, N]."""
    return np.stack([originals, images], axis=1).reshape(-1, images.shape[1])


def save_grid(images: Images, path: Path) -> None:
    """Writes images [B, N] as one PNG, row by row in a square or a little wider, with one grey pixel between them.

    Raises:
      UserError: the file cannot be written.
    """
    from PIL import Image

    height, width, channels = _SHAPES[images.shape[1]]
    columns = math.ceil(math.sqrt(len(images)) / 2) * 2  # even, for pairs to stay in one row
    rows = -(-len(images) // columns)
    cells = np.full((rows * columns, height + 1, width + 1, channels), 128, np.uint8)
    cells[: len(images), :-1, :-1] = images.reshape(-1, height, width, channels)
    grid = cells.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    grid = grid.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid[..., 0] if channels == 1 else grid).save(path)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r} ({error.strerror}): choose another --out.") from error


if __name__ == "__main__":
    command.run(main)
