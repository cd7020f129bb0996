"""ResNet-34 encoders in Flax linen: the papers' pre-activation one and torchvision's.

Both return five features, from half the input's resolution to one thirty-second of it; a U-Net decoder
starts from the last and takes the other four as skips. Depths and width are arguments so that tests can use
a tiny member of the same family. Maps are NHWC; a square of padding is always symmetric, because at stride 2
"SAME" pads differently and would not reproduce the published weights' results.

A radiograph has one channel, the networks' first kernel takes three. Given one channel, both encoders sum the
kernel over its input channels instead of repeating the image: the same result to rounding from a third of the
operations, and no gradient of a three-channel image.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpneumo.model.convolution import convolve, he_uniform

ModuleFactory = Callable[..., nn.Module]


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum at stride 2, of H and W even. Both encoders pool after a ReLU, so that zeros may pad.

    As maxima of slices, rows first: the gradient of XLA's window maximum costs a fifth of a training step on a CPU. In
    float32 at least: a CPU compares bfloat16 at half the speed, and the maximum is the same.
    """
    height, width = x.shape[1:3]
    dtype = x.dtype
    x = x.astype(jnp.promote_types(dtype, jnp.float32))
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = jnp.maximum(jnp.maximum(x[:, 0:height:2], x[:, 1 : height + 1 : 2]), x[:, 2 : height + 2 : 2])
    x = jnp.maximum(jnp.maximum(x[:, :, 0:width:2], x[:, :, 1 : width + 1 : 2]), x[:, :, 2 : width + 2 : 2])
    return x.astype(dtype)


class StemConvolution(nn.Module):
    """The 7x7 convolution at stride 2 that an encoder begins with; its kernel is (7, 7, 3, features).

    `shift` (3,) is added to every pixel of a channel, but not to the padding, before the convolution and `scale`
    (3,) multiplies it before that: they are the input normalisation of the pre-activation encoder.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None = None, shift: jax.Array | None = None) -> jax.Array:
        """(B, H, W, 1 or 3) -> (B, H / 2, W / 2, features)."""
        kernel = self.param("kernel", he_uniform, (7, 7, 3, self.features))
        scaled = kernel if scale is None else kernel * scale[:, None]
        if x.shape[-1] == 1:
            scaled = scaled.sum(axis=2, keepdims=True)
        y = convolve(x.astype(self.dtype), scaled.astype(self.dtype), 2, 3)
        if shift is None:
            return y
        # What the shift adds is the same for all images and differs along the border only. In the shift's type: a
        # bfloat16 convolution of a constant takes XLA on the CPU a hundred times as long.
        ones = jnp.ones((1, *x.shape[1:3], 1), shift.dtype)
        return y + convolve(ones, (kernel * shift[:, None]).sum(axis=2, keepdims=True), 2, 3).astype(self.dtype)


class Norm(nn.BatchNorm):
    """BatchNorm. Without statistics it is what `folding.fold` has left of it: a bias."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.is_initializing() or self.has_variable("batch_stats", "mean"):
            return super().__call__(x)
        return x + self.param("bias", self.bias_init, (x.shape[-1],)).astype(x.dtype)


class InputNorm(nn.BatchNorm):
    """BatchNorm without scale of a grey image's three equal channels, left to the convolution that follows.

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


class PreactivationUnit(nn.Module):
    """BN, ReLU, conv3x3, BN, ReLU, conv3x3, add; a projection starts from the first ReLU's output."""

    features: int
    stride: int
    project: bool
    norm: ModuleFactory
    conv: ModuleFactory

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the unit's output and its first ReLU's, which serves as a skip."""
        activated = nn.relu(self.norm(name="bn1")(x))
        shortcut = self.conv(self.features, 1, self.stride, name="shortcut")(activated) if self.project else x
        y = self.conv(self.features, 3, self.stride, name="conv1")(activated)
        y = self.conv(self.features, 3, name="conv2")(nn.relu(self.norm(name="bn2")(y)))
        return y + shortcut, activated


class PreactivationResNet(nn.Module):
    """The encoder of the papers' Table 3, as the Keras library segmentation_models 1.0.1 builds it.

    A BatchNorm without scale normalises the input, every stage begins with a projection, and the last unit is
    followed by BN and ReLU.
    """

    norm: ModuleFactory
    conv: ModuleFactory
    dtype: jnp.dtype
    depths: Sequence[int] = (3, 4, 6, 3)
    width: int = 64
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """(B, H, W, 1 or 3) in [0, 1] -> five features at 1/2, 1/4, 1/8, 1/16 and 1/32 of H and W."""
        stem = StemConvolution(self.width, self.dtype, name="conv0")
        if x.shape[-1] == 1:
            x = stem(x, *InputNorm(**cast(partial, self.norm).keywords, name="bn_data")(x))
        else:
            x = stem(self.norm(use_scale=False, name="bn_data")(x))
        x = nn.relu(self.norm(name="bn0")(x))
        features = [x]
        x = max_pool(x)
        block = nn.remat(PreactivationUnit) if self.remat else PreactivationUnit
        for stage, depth in enumerate(self.depths, start=1):
            for unit in range(1, depth + 1):
                x, activated = block(
                    self.width * 2 ** (stage - 1),
                    stride=2 if unit == 1 and stage > 1 else 1,
                    project=unit == 1,
                    norm=self.norm,
                    conv=self.conv,
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
    conv: ModuleFactory

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(self.norm(name="bn1")(self.conv(self.features, 3, self.stride, name="conv1")(x)))
        y = self.norm(name="bn2")(self.conv(self.features, 3, name="conv2")(y))
        if self.project:
            x = self.conv(self.features, 1, self.stride, name="downsample_conv")(x)
            x = self.norm(name="downsample_bn")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The post-activation ResNet of torchvision and segmentation_models_pytorch."""

    norm: ModuleFactory
    conv: ModuleFactory
    dtype: jnp.dtype
    depths: Sequence[int] = (3, 4, 6, 3)
    width: int = 64
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """(B, H, W, 1 or 3) in [0, 1] -> five features at 1/2, 1/4, 1/8, 1/16 and 1/32 of H and W."""
        x = StemConvolution(self.width, self.dtype, name="conv1")(x)
        x = nn.relu(self.norm(name="bn1")(x))
        features = [x]
        x = max_pool(x)
        block = nn.remat(BasicBlock) if self.remat else BasicBlock
        for stage, depth in enumerate(self.depths, start=1):
            for unit in range(depth):
                first = unit == 0 and stage > 1
                x = block(
                    self.width * 2 ** (stage - 1),
                    stride=2 if first else 1,
                    project=first,
                    norm=self.norm,
                    conv=self.conv,
                    name=f"layer{stage}_{unit}",
                )(x)
            features.append(x)
        return features
