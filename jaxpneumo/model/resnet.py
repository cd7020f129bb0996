"""ResNet encoders in Flax linen: the papers' pre-activation ResNet-34 and the post-activation ones of PyTorch.

They return five features, from half the input's resolution to one thirty-second of it. A U-Net decoder starts from
the last and takes the other four as skips. Depths and width are arguments so that tests can use a tiny member of the
same family. Maps are NHWC. Padding is always the same on all sides: at stride 2 "SAME" pads differently and would not
reproduce the published weights' results.
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

ModuleFactory = Callable[..., nn.Module]
# (convolution, norm or None, image) -> map, as `plain_stem`; both modules come as their class with all arguments
Stem = Callable[[partial, partial | None, jax.Array], jax.Array]
# (map, rows and columns of padding before it: 1 or 0) -> map, as `plain_pool`
Pool = Callable[[jax.Array, int], jax.Array]


def plain_stem(conv: partial, norm: partial | None, x: jax.Array) -> jax.Array:
    """The first convolution of (B, H, W, 1 or 3), normalised before if `norm` is given. Grey is repeated to three."""
    if x.shape[-1] == 1:
        x = jnp.repeat(x, 3, axis=-1)
    return conv()(x if norm is None else norm()(x))


def plain_pool(x: jax.Array, before: int = 1) -> jax.Array:
    """3x3 maximum at stride 2 of (B, H, W, C), H and W even: (B, H / 2, W / 2, C).

    With `before` 0 the first window begins with the map and the last one is cut off, as in PyTorch's ceil_mode.
    """
    edges = ((before, 1), (before, 1))
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=edges)  # pyright: ignore[reportArgumentType]


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
    stem: Stem = plain_stem
    pool: Pool = plain_pool
    depths: Sequence[int] = (3, 4, 6, 3)
    width: int = 64
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """(B, H, W, 1 or 3) in [0, 1] -> five features at 1/2, 1/4, 1/8, 1/16 and 1/32 of H and W."""
        conv0 = partial(self.conv, self.width, 7, 2, name="conv0")
        x = self.stem(conv0, partial(self.norm, use_scale=False, name="bn_data"), x)
        x = nn.relu(self.norm(name="bn0")(x))
        features = [x]
        x = self.pool(x, 1)
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
    """conv3x3, BN, ReLU, conv3x3, BN, add, ReLU; where the shape changes, the shortcut is a projection with a BN."""

    features: int
    stride: int
    norm: ModuleFactory
    conv: ModuleFactory

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(self.norm(name="bn1")(self.conv(self.features, 3, self.stride, name="conv1")(x)))
        y = self.norm(name="bn2")(self.conv(self.features, 3, name="conv2")(y))
        if x.shape != y.shape:
            x = self.conv(self.features, 1, self.stride, name="downsample_conv")(x)
            x = self.norm(name="downsample_bn")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The post-activation ResNet of torchvision and segmentation_models_pytorch.

    Attributes:
      block: the class of its blocks, with `BasicBlock`'s arguments.
      stem_name: goes before the names of the first convolution and its BatchNorm.
      pool_before: padding before the first maximum.
    """

    norm: ModuleFactory
    conv: ModuleFactory
    block: type[nn.Module] = BasicBlock
    stem_name: str = ""
    pool_before: int = 1
    stem: Stem = plain_stem
    pool: Pool = plain_pool
    depths: Sequence[int] = (3, 4, 6, 3)
    width: int = 64
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """(B, H, W, 1 or 3) in [0, 1] -> five features at 1/2, 1/4, 1/8, 1/16 and 1/32 of H and W."""
        x = self.stem(partial(self.conv, self.width, 7, 2, name=f"{self.stem_name}conv1"), None, x)
        x = nn.relu(self.norm(name=f"{self.stem_name}bn1")(x))
        features = [x]
        x = self.pool(x, self.pool_before)
        block: ModuleFactory = nn.remat(self.block) if self.remat else self.block
        for stage, depth in enumerate(self.depths, start=1):
            for unit in range(depth):
                x = block(
                    self.width * 2 ** (stage - 1),
                    stride=2 if unit == 0 and stage > 1 else 1,
                    norm=self.norm,
                    conv=self.conv,
                    name=f"layer{stage}_{unit}",
                )(x)
            features.append(x)
        return features
