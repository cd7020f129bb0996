"""Faster forms of the network's parts, equal to the plain ones up to rounding, and the choice among them.

Every form has the plain one's signature in `unet.Parts` and the same variables. What each saves: docs/performance.md.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpneumo.model.convolution import Convolution, Convolve, plain_convolve
from jaxpneumo.model.convolution_gradients import convolve_with_explicit_gradients
from jaxpneumo.model.folding import FoldableNorm
from jaxpneumo.model.resnet import plain_stem
from jaxpneumo.model.unet import Parts


def rewrites_for(backend: str, training: bool) -> Parts:
    """The forms that were measured to be the fastest.

    Args:
      backend: as `jax.default_backend()` names it.
      training: False for prediction with what `folding.fold` returns.
    """
    parts = Parts(stem=grey_stem, pool=pool_by_slices, norm=nn.BatchNorm if training else FoldableNorm)
    if backend == "cpu":
        return dataclasses.replace(parts, convolve=convolve_with_explicit_gradients, upsample=folded_upsample)
    return parts


def grey_stem(conv: partial, norm: partial | None, x: jax.Array) -> jax.Array:
    """Convolves a grey image as one channel, with the kernel summed over its three.

    That is a third of the operations, and the gradient of a three-channel image is not needed. The normalisation is
    image * scale + shift. The scale goes into the kernel; what the shift adds is the same for all images.
    """
    if x.shape[-1] != 1:
        return plain_stem(conv, norm, x)
    convolution = conv()
    kernel, _ = convolution.weights(3)
    scale, shift = (None, None) if norm is None else GreyNorm(**norm.keywords)(x)
    scaled = (kernel if scale is None else kernel * scale[:, None]).sum(axis=2, keepdims=True)
    y = plain_convolve(x, scaled.astype(x.dtype), 2, 3)
    if shift is None:
        return y
    # The padding stays without the shift, hence an image of ones and not a bias. In the shift's type: for a constant
    # in bfloat16 XLA's convolution on a CPU takes a hundred times as long.
    ones = jnp.ones((1, *x.shape[1:3], 1), shift.dtype)
    return y + plain_convolve(ones, (kernel * shift[:, None]).sum(axis=2, keepdims=True), 2, 3).astype(x.dtype)


class GreyNorm(nn.BatchNorm):
    """BatchNorm without scale of a grey image's three equal channels; the convolution behind it applies it.

    Holds the variables that BatchNorm has for three channels, and returns (scale, shift), each (3,), with
    normalised = image * scale + shift.
    """

    @nn.compact
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        mean = self.variable("batch_stats", "mean", jnp.zeros, (3,), jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, (3,), jnp.float32)
        bias = self.param("bias", self.bias_init, (3,))
        if self.use_running_average:
            scale = jax.lax.rsqrt(variance.value + self.epsilon)
            return scale, bias - mean.value * scale
        pixels = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        now_mean = pixels.mean()
        now_variance = jnp.maximum(0.0, jnp.square(pixels).mean() - jnp.square(now_mean))
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * now_mean
            variance.value = self.momentum * variance.value + (1 - self.momentum) * now_variance
        scale = jnp.broadcast_to(jax.lax.rsqrt(now_variance + self.epsilon), (3,))
        return scale, bias - now_mean * scale


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
