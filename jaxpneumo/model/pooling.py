"""The encoder's 3x3 maximum at stride 2 with gradients that XLA computes fast; both equal `resnet.plain_pool`."""

import itertools
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

# The tap of a window outside of the map.
_NOWHERE = 9


def pool_by_slices(x: jax.Array, before: int = 1) -> jax.Array:
    """3x3 maximum at stride 2 of (B, H, W, C), H and W even, as maxima of slices, rows first.

    The gradient of XLA's window maximum takes a fifth of a training step on a CPU. Zeros pad, since no value is
    negative. Computed in float32 at least: a CPU compares bfloat16 at half the speed, and the maximum is the same.
    """
    height, width = x.shape[1:3]
    dtype = x.dtype
    x = x.astype(jnp.promote_types(dtype, jnp.float32))
    x = jnp.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
    x = jnp.maximum(jnp.maximum(x[:, 0:height:2], x[:, 1 : height + 1 : 2]), x[:, 2 : height + 2 : 2])
    x = jnp.maximum(jnp.maximum(x[:, :, 0:width:2], x[:, :, 1 : width + 1 : 2]), x[:, :, 2 : width + 2 : 2])
    return x.astype(dtype)


def pool_with_taps(x: jax.Array, before: int = 1) -> jax.Array:
    """`resnet.plain_pool`, which notes for each window where its maximum was: one byte, all the gradient needs.

    Of equal values the first one counts. Zeros pad, since no value is negative.
    """
    return cast(jax.Array, _pool(x, before))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pool(x: jax.Array, before: int) -> jax.Array:
    return _pool_forward(x, before)[0]


def _pool_forward(x: jax.Array, before: int) -> tuple[jax.Array, jax.Array]:
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
    best = jnp.full((x.shape[0], height // 2, width // 2, x.shape[3]), -1, x.dtype)
    tap = jnp.zeros(best.shape, jnp.uint8)
    for row in range(3):
        for column in range(3):
            candidate = padded[:, row : row + height : 2, column : column + width : 2]
            greater = candidate > best
            best, tap = jnp.where(greater, candidate, best), jnp.where(greater, jnp.uint8(3 * row + column), tap)
    return best, tap


def _pool_backward(before: int, tap: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    """Window y has row 2 y + parity at its tap `parity + before`, and window y + d at `parity + before - 2 d`."""
    batch, height, width, channels = dy.shape
    # A border of windows whose maximum lies nowhere.
    edges = ((0, 0), (1, 1), (1, 1), (0, 0))
    tap, dy = jnp.pad(tap, edges, constant_values=_NOWHERE), jnp.pad(dy, edges)
    parity = np.arange(2)
    gradient = jnp.zeros((batch, height, 2, width, 2, channels), dy.dtype)
    # As one sum over all four parities, not as four maps put together: that takes XLA three times as long.
    for down, right in itertools.product((0, 1) if before else (-1, 0), repeat=2):
        row, column = (parity + before - 2 * step for step in (down, right))
        at = np.where(((row >= 0) & (row < 3))[:, None] & ((column >= 0) & (column < 3)), 3 * row[:, None] + column, -1)
        at = at.astype(np.int32)[None, None, :, None, :, None]
        window = slice(None), slice(1 + down, 1 + down + height), slice(1 + right, 1 + right + width)
        there = tap[window].astype(jnp.int32)[:, :, None, :, None] == at
        gradient += jnp.where(there, dy[window][:, :, None, :, None], jnp.zeros((), dy.dtype))
    return (gradient.reshape(batch, 2 * height, 2 * width, channels),)


_pool.defvjp(_pool_forward, _pool_backward)
