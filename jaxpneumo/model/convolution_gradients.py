"""The gradients of convolutions, written out for XLA's CPU backend.

XLA derives a convolution's gradients as further convolutions. Its CPU libraries (oneDNN, Eigen) compute those at less
than half the speed of the forward one: in the kernel's gradient the batch becomes the few input channels and the
result has three columns, and the input's gradient in bfloat16 is computed in float32. Written out, both have many
channels and many columns. The results are equal to rounding; docs/performance.md has the figures.
"""

import functools
import math

import jax
import jax.numpy as jnp

from jaxpneumo.model.convolution import NHWC, Padding, plain_convolve
from jaxpneumo.model.depthwise import convolve_depthwise

# With this many times more elements in the kernel than in the map of gradients, flipping the kernel takes longer than
# the product that does without (measured between 2 and 18).
_KERNEL_OUTWEIGHS = 4
# On maps this wide the kernel's gradient is computed in parts of the batch, at most so many (measured at batch 4, 16).
_WIDE = 64
_MOST_PARTS = 16
# Groups are put together up to so many channels. With 64 a training step (256 pixels, batch 4) takes a tenth less time,
# but has twice the convolutions: it compiles for 63 s instead of 46.
_CHANNELS_TOGETHER = 128


def convolve_with_explicit_gradients(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """As `plain_convolve`, in reverse mode only; the gradients are written out for kernels over 1x1 at stride 1."""
    if kernel.shape[2] == 1 and kernel.shape[3] == x.shape[-1] > 1:
        return convolve_depthwise(x, kernel, stride, padding)
    if kernel.shape[2] < x.shape[-1]:
        return _convolve_groups_together(x, kernel, stride, padding)
    if stride == 1 and len(kernel) > 1 and isinstance(padding, int):
        return _convolve_explicit(x, kernel, padding)
    return plain_convolve(x, kernel, stride, padding)


def _convolve(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """`plain_convolve` at stride 1. XLA takes fifty times as long for a 2x2 map as for a 3x3 one, so it gets a 3x3 one.

    The last row and column of zeros stand where the padding's stood. The barrier keeps XLA from seeing that.
    """
    if x.shape[1:3] != (2, 2) or len(kernel) != 3 or padding != 1:
        return plain_convolve(x, kernel, 1, padding)
    enlarged = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))))
    return plain_convolve(enlarged, kernel, 1, padding)[:, :2, :2]


def _convolve_groups_together(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """A convolution in groups as few ones without, of several groups each; between groups the kernel is zero.

    That is many times the operations. But XLA's own kernel gradient of four channels a group takes 14 s on a map of
    (4, 64, 64, 128), and this form takes 0.3 s for both gradients.
    """
    size, _, each, features = kernel.shape
    groups = x.shape[-1] // each
    most = max(1, _CHANNELS_TOGETHER // each)
    together = max(count for count in range(1, groups + 1) if groups % count == 0 and count <= most)
    parts = groups // together
    # (row, column, 1, channel, part, group, feature) times (group, 1, group, 1)
    kernels = kernel.reshape(size, size, 1, each, parts, together, features // groups)
    apart = jnp.eye(together, dtype=kernel.dtype)[:, None, :, None]
    convolved = [
        convolve_with_explicit_gradients(
            part, (kernels[:, :, :, :, i] * apart).reshape(size, size, together * each, -1), stride, padding
        )
        for i, part in enumerate(jnp.split(x, parts, axis=-1))
    ]
    return jnp.concatenate(convolved, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_explicit(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    return _convolve(x, kernel, padding)


def _forward(x: jax.Array, kernel: jax.Array, padding: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel, padding), (x, kernel)


def _backward(padding: int, residuals: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    small = kernel.size > _KERNEL_OUTWEIGHS * dy.size
    input_gradient = _input_gradient_by_columns if small else _input_gradient
    return input_gradient(dy, kernel, padding), _kernel_gradient(x, dy, kernel.shape[0], padding)


_convolve_explicit.defvjp(_forward, _backward)


def _input_gradient(dy: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """A forward convolution with the flipped kernel. XLA would compute its own one for bfloat16 in float32."""
    return _convolve(dy, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), kernel.shape[0] - 1 - padding)


def _input_gradient_by_columns(dy: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """One matrix product with the kernel as stored gives what each tap contributes; these are shifted and added."""
    size, _, channels, features = kernel.shape
    terms = jnp.einsum("nhwo,co->nhwc", dy, kernel.reshape(-1, features))
    terms = terms.reshape(*dy.shape[:3], size, size, channels)
    height, width = (length + size - 1 - 2 * padding for length in dy.shape[1:3])
    total = 0.0
    for row in range(size):
        for column in range(size):
            low = (row - padding, column - padding)
            edges = [
                (before, length - before - given, 0)
                for before, length, given in zip(low, (height, width), dy.shape[1:3], strict=True)
            ]
            term = terms[:, :, :, row, column].astype(jnp.promote_types(dy.dtype, jnp.float32))
            total += jax.lax.pad(term, jnp.zeros((), term.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    return jnp.asarray(total).astype(dy.dtype)


def _kernel_gradient(x: jax.Array, dy: jax.Array, size: int, padding: int) -> jax.Array:
    """The sum of `_kernel_gradient_of_part`. Wide maps go in parts, which fit the caches better."""
    parts = math.gcd(len(x), _MOST_PARTS) if x.shape[2] >= _WIDE else 1
    pairs = zip(jnp.split(x, parts), jnp.split(dy, parts), strict=True)
    return jnp.asarray(sum(_kernel_gradient_of_part(*pair, size, padding) for pair in pairs))


def _kernel_gradient_of_part(x: jax.Array, dy: jax.Array, size: int, padding: int) -> jax.Array:
    """A convolution along the rows: images and columns are its input channels, x's channels are its columns.

    The shifts along a row are made beforehand: `size` shifted copies of dy, side by side as channels.
    """
    batch, height, width, channels = x.shape
    rows, features = dy.shape[1], dy.shape[3]
    edge = size - 1 - padding
    padded = jnp.pad(dy.transpose(1, 0, 2, 3), ((0, 0), (0, 0), (edge, edge), (0, 0)))
    shifted = jnp.concatenate([padded[:, :, size - 1 - i : size - 1 - i + width] for i in range(size)], axis=-1)
    taps = jax.lax.conv_general_dilated(
        x.transpose(1, 3, 0, 2).reshape(1, height, channels, batch * width),
        shifted.reshape(rows, 1, batch * width, size * features),
        (1, 1),
        [(padding, padding), (0, 0)],
        dimension_numbers=NHWC,
    )
    return taps.reshape(size, channels, size, features).transpose(0, 2, 1, 3)
