"""The first convolution of a grey image: as one channel, not three, and as four on a GPU.

Both forms have `resnet.plain_stem`'s arguments and variables, and its results to rounding.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpneumo.model.convolution import plain_convolve
from jaxpneumo.model.packed import convolve_filled, pack
from jaxpneumo.model.resnet import plain_stem


def grey_stem(conv: partial, norm: partial | None, x: jax.Array) -> jax.Array:
    """Convolves a grey image as one channel, with the kernel summed over its three.

    That is a third of the operations, and the gradient of a three-channel image is not needed.
    """
    if x.shape[-1] != 1:
        return plain_stem(conv, norm, x)
    kernel, shift = grey_kernel_and_shift(conv, norm, x)
    y = plain_convolve(x, kernel, 2, _edges(conv, kernel))
    return y if shift is None else y + shift.astype(x.dtype)


def _edges(conv: partial, kernel: jax.Array) -> tuple[int, int]:
    """Rows and columns of zeros before and behind the image, as `Convolution` has them."""
    half = len(kernel) // 2
    return conv.keywords.get("edges") or (half, half)


def grey_kernel_and_shift(conv: partial, norm: partial | None, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """A kernel of one channel for a grey image, and what is added behind it: (K, K, 1, O), (1, H / 2, W / 2, O).

    The normalisation is image * scale + shift. The scale goes into the kernel. What the shift adds is the same for all
    images; without normalisation it is None.
    """
    kernel, _ = conv().weights(3)
    if norm is None:
        return kernel.sum(axis=2, keepdims=True).astype(x.dtype), None
    scale, shift = GreyNorm(**norm.keywords)(x)
    # The padding stays without the shift, hence an image of ones and not a bias. In the shift's type: for a constant
    # in bfloat16 XLA's convolution on a CPU takes a hundred times as long.
    ones = jnp.ones((1, *x.shape[1:3], 1), shift.dtype)
    shifted = (kernel * shift[:, None]).sum(axis=2, keepdims=True)
    shifts = plain_convolve(ones, shifted, 2, _edges(conv, kernel))
    return (kernel * scale[:, None]).sum(axis=2, keepdims=True).astype(x.dtype), shifts


def packed_grey_stem(conv: partial, norm: partial | None, x: jax.Array) -> jax.Array:
    """`grey_stem` with 2x2 pixels as four channels: 7x7 at stride 2 becomes 4x4 at stride 1, and 3x3 becomes 2x2."""
    if x.shape[-1] != 1:
        return plain_stem(conv, norm, x)
    kernel, shift = grey_kernel_and_shift(conv, norm, x)
    # Rows 2 y - 3 to 2 y + 3 of a 7x7 kernel lie in the pairs y - 2 to y + 1, whose first row is not met. Rows 2 y to
    # 2 y + 2 of a 3x3 kernel that begins with the image lie in the pairs y and y + 1, whose last row is not met.
    before, _ = _edges(conv, kernel)
    unmet = (before % 2, 1 - before % 2)
    pairs = (len(kernel) + 1) // 2
    kernel = jnp.pad(kernel, (unmet, unmet, (0, 0), (0, 0))).reshape(pairs, 2, pairs, 2, -1)
    kernel = kernel.transpose(0, 2, 1, 3, 4).reshape(pairs, pairs, 4, -1)
    columns = pack(x).reshape(x.shape[0], x.shape[1] // 2, x.shape[2] // 2, 4)
    y = convolve_filled(columns, kernel, (before + 1) // 2)
    return y if shift is None else y + shift.astype(x.dtype)


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
