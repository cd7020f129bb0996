"""Faster forms of the network's parts, equal to the plain ones up to rounding, and the choice among them.

Every form has the plain one's signature in `unet.Parts` and the same variables. What each saves: docs/performance.md.
"""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpneumo.model.batch_norm import ExplicitNorm
from jaxpneumo.model.convolution import Convolution, Convolve
from jaxpneumo.model.convolution_gradients import convolve_with_explicit_gradients
from jaxpneumo.model.folding import FoldableNorm
from jaxpneumo.model.packed import packed_decoder_end, parted_upsample
from jaxpneumo.model.pooling import pool_by_slices, pool_with_taps
from jaxpneumo.model.stem import grey_stem, packed_grey_stem
from jaxpneumo.model.unet import Parts, plain_upsample

# Measured on an H200: a prediction of 64 views gains a tenth by `parted_upsample`, one of 2 loses. Between them nothing
# was measured.
_MANY = 8


def rewrites_for(backend: str, training: bool) -> Parts:
    """The forms that were measured to be the fastest.

    Args:
      backend: as `jax.default_backend()` names it.
      training: False for prediction with what `folding.fold` returns.
    """
    if backend == "cpu":
        return Parts(
            convolve=convolve_with_explicit_gradients,
            norm=nn.BatchNorm if training else FoldableNorm,
            stem=grey_stem,
            pool=pool_by_slices,
            upsample=folded_upsample,
        )
    gpu = Parts(stem=packed_grey_stem, pool=pool_with_taps, decoder_end=packed_decoder_end)
    if training:
        return replace(gpu, norm=ExplicitNorm)
    return replace(gpu, norm=FoldableNorm, upsample=parted_upsample_of_many)


def parted_upsample_of_many(conv: Convolution, x: jax.Array, skip: jax.Array | None) -> jax.Array:
    """`parted_upsample` of a batch with `_MANY` views or more, else `plain_upsample`."""
    return (parted_upsample if len(x) >= _MANY else plain_upsample)(conv, x, skip)


def folded_upsample(conv: Convolution, x: jax.Array, skip: jax.Array | None) -> jax.Array:
    """Without the enlarged map: `_convolve_upsampled` of x plus the convolution of the skip alone."""
    channels = x.shape[-1]
    kernel, _ = conv.weights(channels if skip is None else channels + skip.shape[-1])
    kernel = kernel.astype(conv.dtype)
    y = _convolve_upsampled(x, kernel[:, :, :channels], conv.convolve)
    return y if skip is None else y + conv.convolve(skip, kernel[:, :, channels:], 1, 1)


def _convolve_upsampled(x: jax.Array, kernel: jax.Array, convolve: Convolve) -> jax.Array:
    """Nearest-neighbour enlargement by two, then a 3x3 convolution: 16 products for every 36.

    Of the three enlarged rows under the kernel two are equal, so a row of the result depends on two rows of x. An
    even row takes row y - 1 times the kernel's first row, and row y times the sum of the other two; an odd row the
    mirror image of that. Columns do the same. One 2x2 convolution gives the four neighbours of a result as channels.

    Args:
      x: (B, H, W, C).
      kernel: (3, 3, C, O).
      convolve: computes the 2x2 convolution.

    Returns:
      (B, 2 H, 2 W, O).
    """
    batch, height, width, channels = x.shape
    # (column parity, column tap, row parity, row tap, C, O); odd before even, see below
    kernels = _taps_of_pairs(jnp.moveaxis(_taps_of_pairs(kernel), 2, 0))
    kernels = kernels.transpose(3, 1, 4, 2, 0, 5).reshape(2, 2, channels, -1)
    y = convolve(x, kernels, 1, 1).reshape(batch, height + 1, width + 1, 2, 2, -1)
    # The padded result begins with the odd row before the first one. So odd goes before even, and one row and one
    # column at each border are cut off.
    y = y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height + 2, 2 * width + 2, -1)
    return y[:, 1:-1, 1:-1]


def _taps_of_pairs(kernel: jax.Array) -> jax.Array:
    """Three taps on enlarged rows (3, ...) as two taps on the rows themselves (2 parities, odd first; 2 taps, ...)."""
    first, middle, last = kernel
    return jnp.stack([jnp.stack([first + middle, last]), jnp.stack([first, middle + last])])
