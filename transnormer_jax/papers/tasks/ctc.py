"""Connectionist temporal classification: labels without alignment to frames, and the error rate in which they count."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

BLANK = 0


def ctc_loss(
    logits: Float[Array, "B N V"], frame_mask: Bool[Array, "B N"], labels: Int[Array, "B U"]
) -> Float[Array, " B"]:
    """Negative log-probability of the labels, summed over alignments (Graves et al. 2006, eq. 8), in nats.

    Args:
      logits: [B, N, V]; class 0 is the blank.
      frame_mask: [B, N], True at real frames, which stand on the left. What other frames hold does not matter.
      labels: [B, U] int32, 1 ... V - 1, then zeros.

    Returns:
      [B] float32. About 1e5 where the frames are too few for any alignment: one per label, and one more between equals.
    """
    logits = jnp.where(frame_mask[..., None], logits.astype(jnp.float32), 0)
    frame_padding, label_padding = (~frame_mask).astype(jnp.float32), (labels == BLANK).astype(jnp.float32)
    return optax.ctc_loss(logits, frame_padding, labels, label_padding, blank_id=BLANK)


def greedy_ctc_decode(
    logits: Float[Array, "B N V"], frame_mask: Bool[Array, "B N"]
) -> tuple[Int[Array, "B N"], Bool[Array, "B N"]]:
    """The labels of the likeliest alignment: the best class of each frame, repeats collapsed, then blanks dropped.

    Args:
      logits: [B, N, V]; class 0 is the blank.
      frame_mask: [B, N], True at real frames, which stand on the left.

    Returns:
      Labels [B, N] int32, on the left, then zeros; and where they are, [B, N].
    """
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    before = jnp.pad(best, ((0, 0), (1, 0)))[:, :-1]  # nothing comes before the first frame, like a blank
    keep = frame_mask & (best != BLANK) & (best != before)
    place = jnp.where(keep, jnp.cumsum(keep, axis=1) - 1, best.shape[1])  # one past the end is dropped
    labels = jax.vmap(lambda best, place: jnp.zeros_like(best).at[place].set(best, mode="drop"))(best, place)
    return labels, labels != BLANK


def edit_distance(
    a: Int[Array, "B N"], a_length: Int[Array, " B"], b: Int[Array, "B U"], b_length: Int[Array, " B"]
) -> Int[Array, " B"]:
    """Levenshtein: the fewest insertions, deletions and substitutions from each row of `a` to that of `b`, [B] int32.

    Args:
      a: [B, N] int32, of which the first `a_length` count.
      a_length: [B] int32.
      b: [B, U] int32, of which the first `b_length` count.
      b_length: [B] int32.
    """
    columns = jnp.arange(b.shape[1] + 1, dtype=jnp.int32)[None]

    def row(distance: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        # `distance[:, j]`: from the first i symbols of a to the first j of b; this adds symbol i + 1 of a.
        i, symbol = at
        replaced = distance[:, :-1] + (symbol[:, None] != b)
        without = jnp.concatenate([distance[:, :1] + 1, jnp.minimum(distance[:, 1:] + 1, replaced)], axis=1)
        # Insertions: the least over k <= j of without[k] + (j - k).
        after = jax.lax.cummin(without - columns, axis=1) + columns
        return jnp.where((i < a_length)[:, None], after, distance), None

    start = jnp.broadcast_to(columns, (a.shape[0], columns.shape[1]))
    distance, _ = jax.lax.scan(row, start, (jnp.arange(a.shape[1], dtype=jnp.int32), a.T))
    return jnp.take_along_axis(distance, b_length[:, None], axis=1)[:, 0]
