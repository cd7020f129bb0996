"""Square convolutions of NHWC maps, and their gradients written out for XLA's CPU backend.

XLA derives a convolution's gradients as further convolutions, of shapes that its CPU libraries (oneDNN, Eigen) compute
at less than half the speed of the forward one: the kernel's gradient becomes one with the batch as its few features
and three columns of output, and the input's gradient in bfloat16 is carried out in float32. Written out, both have
many features and many columns. Exact to rounding; figures in BUILD_NOTES.md.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

he_uniform = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")

_NHWC = ("NHWC", "HWIO", "NHWC")
# Turning the kernel around costs more than the columns that save it from where it has this many times the elements of
# the map of gradients (measured between 2 and 18).
_KERNEL_OUTWEIGHS = 4
# A kernel's gradient goes by parts of the batch on maps this wide, in at most so many (measured at 4 and 16 images).
_WIDE = 64
_MOST_PARTS = 16


class Convolution(nn.Module):
    """A square convolution, symmetrically padded by half its kernel, He-uniform.

    Attributes:
      features: output channels.
      size: height and width of the kernel.
      stride: in both directions.
      use_bias: add a learnt bias, one a channel.
      kernel_init: initialiser of the kernel (size, size, C, features).
      dtype: type of the computation.
      explicit_gradients: as for `convolve`.
    """

    features: int
    size: int
    stride: int = 1
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = he_uniform
    dtype: jnp.dtype = jnp.float32
    explicit_gradients: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H / stride, W / stride, features)."""
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = convolve(x, kernel, self.stride, self.size // 2, self.explicit_gradients)
        if not self.use_bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)


def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int, explicit_gradients: bool = False) -> jax.Array:
    """(B, H, W, C) with a kernel (K, K, C, O), symmetrically padded by zeros.

    `explicit_gradients` concerns kernels over 1x1 at stride 1, and allows reverse mode only.
    """
    if explicit_gradients and stride == 1 and len(kernel) > 1:
        return _convolve_explicit(x, kernel, padding)
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=_NHWC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_explicit(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    return convolve(x, kernel, 1, padding)


def _forward(x: jax.Array, kernel: jax.Array, padding: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel, 1, padding), (x, kernel)


def _backward(padding: int, residuals: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    small = kernel.size > _KERNEL_OUTWEIGHS * dy.size
    input_gradient = _input_gradient_by_columns if small else _input_gradient
    return input_gradient(dy, kernel, padding), _kernel_gradient(x, dy, kernel.shape[0], padding)


_convolve_explicit.defvjp(_forward, _backward)


def _input_gradient(dy: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """As a forward convolution with the turned kernel: derived by XLA, bfloat16 would be computed in float32."""
    return convolve(dy, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), 1, kernel.shape[0] - 1 - padding)


def _input_gradient_by_columns(dy: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """As one matrix product with the kernel as it lies, giving each tap's share, and a sum of the shares shifted."""
    size, _, channels, features = kernel.shape
    shares = jnp.einsum("nhwo,co->nhwc", dy, kernel.reshape(-1, features))
    shares = shares.reshape(*dy.shape[:3], size, size, channels)
    height, width = (length + size - 1 - 2 * padding for length in dy.shape[1:3])
    total = 0.0
    for row in range(size):
        for column in range(size):
            low = (row - padding, column - padding)
            edges = [
                (before, length - before - given, 0)
                for before, length, given in zip(low, (height, width), dy.shape[1:3], strict=True)
            ]
            share = shares[:, :, :, row, column].astype(jnp.promote_types(dy.dtype, jnp.float32))
            total += jax.lax.pad(share, jnp.zeros((), share.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    return jnp.asarray(total).astype(dy.dtype)


def _kernel_gradient(x: jax.Array, dy: jax.Array, size: int, padding: int) -> jax.Array:
    """`_kernel_gradient_of_part` of all images; of wide maps in parts that leave more of the work in the caches."""
    parts = math.gcd(len(x), _MOST_PARTS) if x.shape[2] >= _WIDE else 1
    pairs = zip(jnp.split(x, parts), jnp.split(dy, parts), strict=True)
    return jnp.asarray(sum(_kernel_gradient_of_part(*pair, size, padding) for pair in pairs))


def _kernel_gradient_of_part(x: jax.Array, dy: jax.Array, size: int, padding: int) -> jax.Array:
    """As a convolution along the rows, with images and columns as features and x's channels as columns.

    The shift along a row is given to dy: three copies of it become as many times its channels.
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
        dimension_numbers=_NHWC,
    )
    return taps.reshape(size, channels, size, features).transpose(0, 2, 1, 3)
