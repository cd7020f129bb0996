"""Depthwise convolutions for XLA's CPU backend, as sums of shifted maps: each channel meets a kernel of its own.

XLA's own form takes 14 to 54 times as long, and its gradients 34 to 138 times; docs/performance.md has the figures.
Sums are in float32 at least.
"""

import functools

import jax
import jax.numpy as jnp

from jaxpneumo.model.convolution import Padding


def convolve_depthwise(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """`convolution.plain_convolve` of (B, H, W, C) with a kernel (K, K, 1, C), in reverse mode only."""
    edges = (padding, padding) if isinstance(padding, int) else padding
    return _unpadded(jnp.pad(x, ((0, 0), edges, edges, (0, 0))), kernel, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _unpadded(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return _convolve(x, kernel, stride)


def _convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    size = kernel.shape[0]
    height, width = ((length - size) // stride + 1 for length in x.shape[1:3])
    taps = _wide(kernel).reshape(size * size, -1)
    total = sum(_wide(part) * tap for part, tap in zip(_shifted(x, size, stride, height, width), taps, strict=True))
    return jnp.asarray(total).astype(x.dtype)


def _forward(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel, stride), (x, kernel)


def _backward(stride: int, residuals: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The input's gradient is a convolution too, of dy with zeros between its pixels and the flipped kernel."""
    x, kernel = residuals
    size = kernel.shape[0]
    edges = [
        (size - 1, length - stride * (given - 1) - 1, stride - 1)
        for length, given in zip(x.shape[1:3], dy.shape[1:3], strict=True)
    ]
    apart = jax.lax.pad(dy, jnp.zeros((), dy.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    dx = _convolve(apart, jnp.flip(kernel, (0, 1)), 1)
    parts = _shifted(x, size, stride, *dy.shape[1:3])
    taps = jnp.stack([_sum_by_halves(_wide(part) * _wide(dy)) for part in parts])
    return dx, taps.reshape(kernel.shape).astype(kernel.dtype)


_unpadded.defvjp(_forward, _backward)


def _shifted(x: jax.Array, size: int, stride: int, height: int, width: int) -> list[jax.Array]:
    """The parts of the map that the kernel's taps meet, row by row, each (B, height, width, C)."""
    bottom, right = stride * (height - 1) + 1, stride * (width - 1) + 1
    return [
        x[:, row : row + bottom : stride, column : column + right : stride]
        for row in range(size)
        for column in range(size)
    ]


def _sum_by_halves(x: jax.Array) -> jax.Array:
    """The sum over all pixels, (C,). Adding halves to each other reads along the channels, which XLA's sum does not."""
    for axis in (0, 1):
        while x.shape[axis] % 2 == 0:
            lower, upper = jnp.split(x, 2, axis)
            x = lower + upper
    return x.sum((0, 1, 2))


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
