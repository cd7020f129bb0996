"""Square convolutions of NHWC maps."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

NHWC = ("NHWC", "HWIO", "NHWC")
# Rows and columns of zeros on all sides, or before and behind
Padding = int | tuple[int, int]
# (x, kernel, stride, padding) -> y, as `plain_convolve`
Convolve = Callable[[jax.Array, jax.Array, int, Padding], jax.Array]

he_uniform = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")


def plain_convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """(B, H, W, C) with a kernel (K, K, C / groups, O), padded by zeros, in both directions alike."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding) if isinstance(padding, int) else padding] * 2,
        dimension_numbers=NHWC,
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


class Convolution(nn.Module):
    """A square convolution, He-uniform.

    Attributes:
      features: output channels.
      size: height and width of the kernel.
      stride: in both directions.
      use_bias: add a learnt bias, one a channel.
      groups: parts of the channels, each convolved alone; divides C and features.
      edges: rows and columns of zeros before and behind the map; None is half the kernel on all sides.
      kernel_init: initialiser of the kernel (size, size, C / groups, features).
      dtype: type of the computation.
      convolve: computes it.
    """

    features: int
    size: int
    stride: int = 1
    use_bias: bool = False
    groups: int = 1
    edges: tuple[int, int] | None = None
    kernel_init: nn.initializers.Initializer = he_uniform
    dtype: jnp.dtype = jnp.float32
    convolve: Convolve = plain_convolve

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H / stride, W / stride, features)."""
        kernel, bias = self.weights(x.shape[-1])
        half = self.size // 2
        edges = self.edges or (half, half)
        padding = half if edges == (half, half) else edges
        y = self.convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, padding)
        return y if bias is None else y + bias.astype(self.dtype)

    @nn.compact
    def weights(self, channels: int) -> tuple[jax.Array, jax.Array | None]:
        """The kernel (size, size, channels / groups, features) and the bias (features,) or None, as stored."""
        shape = (self.size, self.size, channels // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
