"""BatchNorm with its gradient written out, for GPUs: each map is read as seldom as possible.

The gradient needs two sums over the map, of dy and of dy times the normalised map. XLA derives more than that, and
computes some of them in kernels of their own.
"""

from functools import partial
from math import prod
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

# Up to so many pixels XLA sums a channel in one go, by few threads. There the sums of each image come first.
_FEW_PIXELS = 8192


class ExplicitNorm(nn.BatchNorm):
    """BatchNorm of (B, H, W, C), or of a packed map (B, H, W, 4, C): same variables, same results to rounding."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.use_running_average or not self.use_scale:
            return super().__call__(x)
        shape, channels = x.shape, x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", self.bias_init, (channels,))
        normalised = _normalise(x.reshape(*shape[:3], -1), scale, bias, self.epsilon)
        y, now_mean, now_variance = cast(tuple[jax.Array, jax.Array, jax.Array], normalised)
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * now_mean
            variance.value = self.momentum * variance.value + (1 - self.momentum) * now_variance
        return y.reshape(shape).astype(self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises x (B, H, W, n C), n columns a channel. Returns it, and mean and variance (C,), without a gradient."""
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[tuple, tuple]:
    pixels, columns = _wide(x), x.shape[-1] // len(scale)
    count = x.size // len(scale)
    total, squares = _sums(pixels, jnp.square(pixels), len(scale))
    mean = total / count
    variance = jnp.maximum(0.0, squares / count - jnp.square(mean))
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = pixels * jnp.tile(scale * inverse, columns) + jnp.tile(bias - mean * scale * inverse, columns)
    return (y.astype(x.dtype), mean, variance), (x, scale, mean, inverse)


def _backward(epsilon: float, residuals: tuple, cotangents: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, mean, inverse = residuals
    columns, count = x.shape[-1] // len(scale), x.size // len(scale)
    dy = _wide(cotangents[0])
    normalised = (_wide(x) - jnp.tile(mean, columns)) * jnp.tile(inverse, columns)
    bias_gradient, scale_gradient = _sums(dy, dy * normalised, len(scale))
    dx = dy - jnp.tile(bias_gradient / count, columns) - normalised * jnp.tile(scale_gradient / count, columns)
    return (dx * jnp.tile(scale * inverse, columns)).astype(x.dtype), scale_gradient, bias_gradient


_normalise.defvjp(_forward, _backward)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _sums(one: jax.Array, other: jax.Array, channels: int) -> tuple[jax.Array, jax.Array]:
    """The sums over all pixels of two maps (B, H, W, n C), in one pass over both: (C,) each."""
    maps = one, other
    if prod(one.shape[:3]) <= _FEW_PIXELS:
        maps = jax.lax.optimization_barrier(tuple(each.sum((1, 2)) for each in maps))
    sums = tuple(each.sum(tuple(range(each.ndim - 1))) for each in maps)
    if one.shape[-1] > channels:
        # Behind a barrier, or XLA joins this sum with the one before, and one map's differently from the other's.
        sums = jax.lax.optimization_barrier(sums)
    first, second = (each.reshape(-1, channels).sum(0) for each in sums)
    return first, second
