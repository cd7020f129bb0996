"""The network's ends with few channels, computed over 2x2 pixels at a time: a GPU's matrix units like many channels.

A packed map (B, H / 2, W / 2, 4, C) holds the four pixels of each 2x2 window side by side, the upper row first. A 3x3
convolution of the whole map is one of 4 C to 4 O channels of the packed map: four times the multiplications, but in a
form that a GPU computes at several times the rate. BatchNorm and ReLU work on either form alike, as the channels are
last. All forms are exact, with the variables of the plain ones. What each saves: docs/performance.md.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxpneumo.model.convolution import NHWC, Convolution, Padding

# A GPU's matrix units take channels by eights; fewer are filled up with zeros.
_CHANNELS = 8


def _taps_upsampled() -> np.ndarray:
    """(2, 3, 3): whether, in row `parity` of an enlarged pair, tap k of a 3x3 kernel meets the low row `tap - 1`."""
    taps = np.zeros((2, 3, 3))
    for parity in range(2):
        for k in range(3):
            taps[parity, (parity + k - 1) // 2 + 1, k] = 1
    return taps


def _taps_packed() -> np.ndarray:
    """(3, 2, 2, 3): whether, for row `out` of a pair, tap k meets row `in` of the pair `tap - 1` pairs further."""
    taps = np.zeros((3, 2, 2, 3))
    for out in range(2):
        for k in range(3):
            row = out + k - 1
            taps[row // 2 + 1, row % 2, out, k] = 1
    return taps


def packed_decoder_end(block: partial, head: Convolution, x: jax.Array) -> jax.Array:
    """`unet.plain_decoder_end` over packed maps; only the logits, of one channel, are unpacked."""
    conv = partial(block.keywords["conv"], convolve=_convolve_packed)
    x = block(conv=conv, upsample=_upsample_packed)(x, None)
    kernel, bias = head.weights(x.shape[-1])
    logits = _convolve_packed_by_rows(x, kernel.astype(x.dtype))
    return unpack(logits if bias is None else logits + bias.astype(x.dtype))


def _upsample_packed(conv: Convolution, x: jax.Array, skip: jax.Array | None) -> jax.Array:
    """`unet.plain_upsample` of (B, H, W, C) without skip, to a packed map (B, H, W, 4, O)."""
    if skip is not None:
        raise ValueError("the last decoder block has no skip")
    kernel, _ = conv.weights(x.shape[-1])
    return _convolve_upsampled(x.astype(conv.dtype), kernel.astype(conv.dtype))


def parted_upsample(conv: Convolution, x: jax.Array, skip: jax.Array | None) -> jax.Array:
    """`unet.plain_upsample` in two convolutions, one of x and one of the skip: nothing is enlarged or put together."""
    channels = x.shape[-1]
    kernel, _ = conv.weights(channels if skip is None else channels + skip.shape[-1])
    kernel = kernel.astype(conv.dtype)
    y = unpack(_convolve_upsampled(x.astype(conv.dtype), kernel[:, :, :channels]))
    return y if skip is None else y + conv.convolve(skip, kernel[:, :, channels:], 1, 1)


def _convolve_upsampled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Nearest-neighbour enlargement by two, then a 3x3 convolution: (B, H, W, C) -> packed (B, H, W, 4, O).

    A pair of enlarged rows depends on three low rows. So the convolution of the low map with one kernel for each
    place in the 2x2 window gives the packed result.
    """
    taps = jnp.asarray(_taps_upsampled(), kernel.dtype)
    kernels = jnp.einsum("ptk,qsl,klco->tscpqo", taps, taps, kernel)
    y = convolve_filled(x, kernels.reshape(3, 3, x.shape[-1], -1), 1)
    return y.reshape(*x.shape[:3], 4, -1)


def _convolve_packed(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """A 3x3 convolution at stride 1 of a packed map (B, H, W, 4, C) to (B, H, W, 4, O)."""
    if kernel.shape[:2] != (3, 3) or stride != 1 or padding != 1:
        raise ValueError("packed maps take 3x3 convolutions at stride 1, padded by one")
    y = convolve_filled(_columns(x), _packed_kernel(kernel), 1)
    return y.reshape(*x.shape[:4], -1)


def _convolve_packed_by_rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`_convolve_packed` for few output channels, which leave a GPU's matrix units idle.

    One convolution along the rows gives what each of the three rows of taps contributes, as channels; these are
    shifted and added, in float32 at least.
    """
    height, outputs = x.shape[1], 4 * kernel.shape[-1]
    kernels = _packed_kernel(kernel)
    kernels = kernels.transpose(1, 2, 0, 3).reshape(1, 3, kernels.shape[2], 3 * outputs)
    terms = convolve_filled(_columns(x), kernels, 1, rows=(0, 0))
    terms = jnp.pad(terms.astype(jnp.promote_types(x.dtype, jnp.float32)), ((0, 0), (1, 1), (0, 0), (0, 0)))
    parts = [terms[:, tap : tap + height, :, tap * outputs : (tap + 1) * outputs] for tap in range(3)]
    return jnp.asarray(sum(parts)).astype(x.dtype).reshape(*x.shape[:4], -1)


def _packed_kernel(kernel: jax.Array) -> jax.Array:
    """(3, 3, C, O) for whole maps -> (3, 3, 4 C, 4 O) for packed ones."""
    channels, features = kernel.shape[2:]
    taps = jnp.asarray(_taps_packed(), kernel.dtype)
    kernels = jnp.einsum("tapk,sbql,klco->tsabcpqo", taps, taps, kernel)
    return kernels.reshape(3, 3, 4 * channels, 4 * features)


def _columns(x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:3], -1)


def convolve_filled(x: jax.Array, kernel: jax.Array, before: int, rows: tuple[int, int] | None = None) -> jax.Array:
    """A convolution at stride 1, with the channels on both sides filled up to a multiple of eight by zeros.

    Args:
      x: (B, H, W, C).
      kernel: (K, L, C, O).
      before: columns of padding before; one follows behind.
      rows: rows of padding before and behind; None is as for the columns.
    """
    features = kernel.shape[-1]
    more_in, more_out = -kernel.shape[2] % _CHANNELS, -features % _CHANNELS
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more_in)))
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, more_in), (0, more_out)))
    padding = [rows or (before, 1), (before, 1)]
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=NHWC)
    return y[..., :features]


def pack(x: jax.Array) -> jax.Array:
    """(B, H, W, C), H and W even -> (B, H / 2, W / 2, 4, C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
    return x.reshape(batch, height // 2, width // 2, 4, channels)


def unpack(x: jax.Array) -> jax.Array:
    """(B, H, W, 4, C) -> (B, 2 H, 2 W, C), the inverse of `pack`."""
    batch, height, width, _, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels).swapaxes(2, 3)
    return x.reshape(batch, 2 * height, 2 * width, channels)
