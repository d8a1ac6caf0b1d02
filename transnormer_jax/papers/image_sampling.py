"""Images byte by byte: with a cache, or by a whole forward pass for each byte.

The number of a byte and the key decide how it is drawn, so both ways give the same images, up to rounding.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt8

from transnormer_jax.errors import UserError
from transnormer_jax.models import Cache
from transnormer_jax.papers.models import ImageModel
from transnormer_jax.papers.tasks.mixture_of_logistics import sample_mixture_of_logistics
from transnormer_jax.tasks.task import Params


@functools.partial(jax.jit, static_argnums=0, static_argnames="num_bytes")
def sample_images(
    model: ImageModel, params: Params, key: Array, given: Int[Array, "B G"], *, num_bytes: int
) -> UInt8[Array, "B num_bytes"]:
    """Completes images with the model's cache: a state of constant size, or the keys and values of all bytes.

    Args:
      model: the model.
      params: its parameters.
      key: of the random numbers.
      given: [B, G] int32, the bytes that the images begin with, at least one: the model predicts no first byte.
      num_bytes: of an image.

    Returns:
      [B, num_bytes] uint8; the first G are those given.

    Raises:
      UserError: there is no first byte, more bytes are given than an image has, or an attention of the model has no
        recurrent form (LSH): take `sample_images_recomputing`.
    """
    _check(given, num_bytes)
    cache = model.init_cache(given.shape[0], num_bytes)
    if given.shape[1] > 1:
        _, cache = _apply(model, params, given[:, :-1], cache)
    sampled, _ = sample_from_cache(model, params, key, given[:, -1], cache, jnp.arange(given.shape[1], num_bytes))
    return jnp.concatenate([given, sampled], axis=1).astype(jnp.uint8)


def sample_from_cache(
    model: ImageModel, params: Params, key: Array, byte: Int[Array, " B"], cache: Cache, places: Int[Array, " M"]
) -> tuple[Int[Array, "B M"], Cache]:
    """The loop of `sample_images`: the bytes at `places`, which go on from `byte`, and the cache before the last one.

    Args:
      model: the model.
      params: its parameters.
      key: of the random numbers.
      byte: [B] int32, the last known one; not in the cache yet.
      cache: of the bytes before that.
      places: [M] int32, one after the other.
    """

    def step(carry: tuple[Cache, Array], place: Array) -> tuple[tuple[Cache, Array], Array]:
        cache, byte = carry
        mixtures, cache = _apply(model, params, byte[:, None], cache)
        byte = sample_mixture_of_logistics(jax.random.fold_in(key, place), mixtures[:, 0])
        return (cache, byte), byte

    (cache, _), sampled = jax.lax.scan(step, (cache, byte), places)
    return sampled.T, cache


@functools.partial(jax.jit, static_argnums=0, static_argnames="num_bytes")
def sample_images_recomputing(
    model: ImageModel, params: Params, key: Array, given: Int[Array, "B G"], *, num_bytes: int
) -> UInt8[Array, "B num_bytes"]:
    """Completes images without a cache: every byte costs a forward pass of the whole row.

    For attentions without a recurrent form, and to measure what a cache saves. Arguments and result are those of
    `sample_images`. Bytes not drawn yet are 0; a causal model does not see them, though in LSH attention they take
    places in chunks, so that they bear on which of the bytes before meet.

    Raises:
      UserError: there is no first byte, or more bytes are given than an image has.
    """
    _check(given, num_bytes)
    images = jnp.pad(given, ((0, 0), (0, num_bytes - given.shape[1])))

    def step(images: Array, place: Array) -> tuple[Array, None]:
        mixtures = _apply(model, params, images[:, :-1])
        byte = sample_mixture_of_logistics(jax.random.fold_in(key, place), mixtures[:, place - 1])
        return images.at[:, place].set(byte), None

    images, _ = jax.lax.scan(step, images, jnp.arange(given.shape[1], num_bytes))
    return images.astype(jnp.uint8)


def _apply(model: ImageModel, params: Params, *inputs: Any) -> Any:
    return model.apply({"params": params}, *inputs)


def _check(given: Int[Array, "B G"], num_bytes: int) -> None:
    if not 1 <= given.shape[1] <= num_bytes:
        raise UserError(f"{given.shape[1]} bytes are given of images of {num_bytes}: give between 1 and {num_bytes}.")
