"""Where the tokens of packed rows stand, cut into chunks for the kernel."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from transnormer_jax.ops.linear_attention.pallas_gpu.plan import CHUNK, Plan
from transnormer_jax.ops.linear_attention.segments import Segments

POSITION, RUN, TO_LEFT, TO_RIGHT = range(4)  # of `chunk_places`


def chunk_places(segments: Segments, plan: Plan) -> Int[Array, "B M 4 C"]:
    """Per chunk: positions, runs, and the steps from each token to the left and right border of its chunk.

    The left border is the token before the chunk, the right border its last token. The steps are -1 where the border
    is in another document.
    """
    length = plan.parts * plan.chunks * CHUNK
    padding = length - segments.position.shape[1]
    position, run = (jnp.pad(x, ((0, 0), (0, padding)), mode="edge").reshape(len(x), -1, CHUNK) for x in segments)
    left, run_left = (jnp.pad(x[:, :-1, -1:], ((0, 0), (1, 0), (0, 0))) for x in (position, run))
    to_left = jnp.where(run == run_left, position - left, -1)
    to_right = jnp.where(run == run[..., -1:], position[..., -1:] - position, -1)
    return jnp.stack([position, run, to_left, to_right], axis=2)
