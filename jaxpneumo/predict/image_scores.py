"""Scores of an image for having pneumothorax at all, made of the probabilities of its pixels, on the device."""

import functools

import jax
import jax.numpy as jnp

from jaxpneumo.predict.postprocess import NATIVE_AREA

TOP_AREA = 2048  # area of the top_mean score in pixels of a 1024x1024 image; equals the papers' removal threshold


def top_pixels(size: int) -> int:
    """The number of pixels of an image (size, size) that `top_mean` looks at."""
    return max(1, round(TOP_AREA * size**2 / NATIVE_AREA))


def image_scores(probability: jax.Array, top_pixels: int) -> jax.Array:
    """Two scores of an image for having pneumothorax at all.

    Args:
      probability: float32 (B, S, S).
      top_pixels: how many pixels the second one looks at.

    Returns:
      float32 (B, 2): the greatest probability, and the mean of the `top_pixels` greatest.
    """
    top, _ = jax.lax.top_k(probability.reshape(probability.shape[0], -1), top_pixels)
    # Not top[:, 0]: XLA on CPU would then sort all pixels, which takes fifty times as long.
    return jnp.stack([probability.max(axis=(1, 2)), top.mean(axis=1)], axis=1)


@functools.partial(jax.jit, static_argnums=1)
def top_means(probability: jax.Array, size: int) -> jax.Array:
    """The second of `image_scores`, `top_mean`, compiled: float32 (B, S, S) with S = `size` -> float32 (B,)."""
    return image_scores(probability, top_pixels(size))[:, 1]
