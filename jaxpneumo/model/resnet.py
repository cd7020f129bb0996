"""ResNet-34 encoders in Flax linen: the papers' pre-activation one and torchvision's.

Both return five features, from half the input's resolution to one thirty-second of it; a U-Net decoder
starts from the last and takes the other four as skips. Depths and width are arguments so that tests can use
a tiny member of the same family. Maps are NHWC; a square of padding is always symmetric, because at stride 2
"SAME" pads differently and would not reproduce the published weights' results.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

ModuleFactory = Callable[..., nn.Module]

_he_uniform = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")


def convolution(features: int, kernel: int, stride: int = 1, *, dtype: jnp.dtype, name: str) -> nn.Conv:
    """A square convolution without bias, symmetrically padded by half its kernel, He-uniform."""
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=kernel // 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=_he_uniform,
        name=name,
    )


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum at stride 2. Both encoders pool after a ReLU, where padding by -inf and by zero agree."""
    return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


class PreactivationUnit(nn.Module):
    """BN, ReLU, conv3x3, BN, ReLU, conv3x3, add; a projection starts from the first ReLU's output."""

    features: int
    stride: int
    project: bool
    norm: ModuleFactory
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the unit's output and its first ReLU's, which serves as a skip."""
        conv = functools.partial(convolution, self.features, dtype=self.dtype)
        activated = nn.relu(self.norm(name="bn1")(x))
        shortcut = conv(1, self.stride, name="shortcut")(activated) if self.project else x
        y = conv(3, self.stride, name="conv1")(activated)
        y = conv(3, name="conv2")(nn.relu(self.norm(name="bn2")(y)))
        return y + shortcut, activated


class PreactivationResNet(nn.Module):
    """The encoder of the papers' Table 3, as the Keras library segmentation_models 1.0.1 builds it.

    A BatchNorm without scale normalises the input, every stage begins with a projection, and the last unit is
    followed by BN and ReLU.
    """

    norm: ModuleFactory
    dtype: jnp.dtype
    depths: Sequence[int] = (3, 4, 6, 3)
    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """(B, H, W, 3) in [0, 1] -> five features at 1/2, 1/4, 1/8, 1/16 and 1/32 of H and W."""
        x = self.norm(use_scale=False, name="bn_data")(x)
        x = convolution(self.width, 7, 2, dtype=self.dtype, name="conv0")(x)
        x = nn.relu(self.norm(name="bn0")(x))
        features = [x]
        x = max_pool(x)
        for stage, depth in enumerate(self.depths, start=1):
            for unit in range(1, depth + 1):
                x, activated = PreactivationUnit(
                    self.width * 2 ** (stage - 1),
                    stride=2 if unit == 1 and stage > 1 else 1,
                    project=unit == 1,
                    norm=self.norm,
                    dtype=self.dtype,
                    name=f"stage{stage}_unit{unit}",
                )(x)
                if unit == 1 and stage > 1:
                    features.append(activated)
        return [*features, nn.relu(self.norm(name="bn1")(x))]


class BasicBlock(nn.Module):
    """conv3x3, BN, ReLU, conv3x3, BN, add, ReLU; the projection, where there is one, ends in a BN."""

    features: int
    stride: int
    project: bool
    norm: ModuleFactory
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(convolution, self.features, dtype=self.dtype)
        y = nn.relu(self.norm(name="bn1")(conv(3, self.stride, name="conv1")(x)))
        y = self.norm(name="bn2")(conv(3, name="conv2")(y))
        if self.project:
            x = self.norm(name="downsample_bn")(conv(1, self.stride, name="downsample_conv")(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The post-activation ResNet of torchvision and segmentation_models_pytorch."""

    norm: ModuleFactory
    dtype: jnp.dtype
    depths: Sequence[int] = (3, 4, 6, 3)
    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """(B, H, W, 3) in [0, 1] -> five features at 1/2, 1/4, 1/8, 1/16 and 1/32 of H and W."""
        x = convolution(self.width, 7, 2, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(self.norm(name="bn1")(x))
        features = [x]
        x = max_pool(x)
        for stage, depth in enumerate(self.depths, start=1):
            for block in range(depth):
                first = block == 0 and stage > 1
                x = BasicBlock(
                    self.width * 2 ** (stage - 1),
                    stride=2 if first else 1,
                    project=first,
                    norm=self.norm,
                    dtype=self.dtype,
                    name=f"layer{stage}_{block}",
                )(x)
            features.append(x)
        return features
