"""EfficientNet-B4 as an encoder, as segmentation_models_pytorch builds it: a table of inverted bottlenecks.

Its paddings are those of B4's own images of 380 pixels, whatever the image's size. So the third stage, whose map of 95
pixels becomes one of 48, pads by two rows before the map, where "SAME" of an even map pads by one. Stochastic depth
(drop connect), with which the library trains it, is left out: evaluation is equal, and training is with rate 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax

from jaxpneumo.model.resnet import ModuleFactory, Pool, Stem, plain_pool, plain_stem

IMAGE_SIZE = 380  # the paddings' reference
STEM_FEATURES, STEM_SIZE = 48, 3
# Units and channels that the arguments `depths` and `width` stand for; others change the table in proportion.
_DEPTHS, _WIDTH = (3, 4, 6, 3), 64


class BlockStage(NamedTuple):
    """Blocks of one shape; the first one has the stride. Stages of one level are at one resolution behind it."""

    level: int
    blocks: int
    features: int
    size: int
    stride: int
    expansion: int


STAGES = (
    BlockStage(level=0, blocks=2, features=24, size=3, stride=1, expansion=1),
    BlockStage(level=0, blocks=4, features=32, size=3, stride=2, expansion=6),
    BlockStage(level=1, blocks=4, features=56, size=5, stride=2, expansion=6),
    BlockStage(level=2, blocks=6, features=112, size=3, stride=2, expansion=6),
    BlockStage(level=2, blocks=6, features=160, size=5, stride=1, expansion=6),
    BlockStage(level=3, blocks=8, features=272, size=5, stride=2, expansion=6),
    BlockStage(level=3, blocks=2, features=448, size=3, stride=1, expansion=6),
)


@dataclass(frozen=True)
class Block:
    """What one `InvertedBottleneck` is; `edges` are the zeros before and behind its depthwise convolution's map."""

    features: int
    size: int
    stride: int
    edges: tuple[int, int]
    expansion: int
    residual: bool


@dataclass(frozen=True)
class BlockTable:
    """The whole encoder: its stem, and the blocks of the levels at 1/4, 1/8, 1/16 and 1/32 of the image."""

    stem_features: int
    stem_edges: tuple[int, int]
    levels: list[list[Block]] = field(default_factory=lambda: [[], [], [], []])


def edges_for(side: int, size: int, stride: int) -> tuple[int, int]:
    """Zeros before and behind a map of `side` pixels with which a convolution gives side / stride, rounded up."""
    total = max((-(-side // stride) - 1) * stride + size - side, 0)
    return total // 2, total - total // 2


def block_table(depths: Sequence[int], width: int) -> BlockTable:
    """B4 for depths (3, 4, 6, 3) and width 64; else blocks and channels in proportion, one at least."""
    made = BlockTable(max(1, STEM_FEATURES * width // _WIDTH), edges_for(IMAGE_SIZE, STEM_SIZE, 2))
    side = IMAGE_SIZE // 2
    for stage in STAGES:
        for number in range(max(1, stage.blocks * depths[stage.level] // _DEPTHS[stage.level])):
            stride = 1 if number else stage.stride
            features = max(1, stage.features * width // _WIDTH)
            edges = edges_for(side, stage.size, stride)
            made.levels[stage.level].append(
                Block(features, stage.size, stride, edges, stage.expansion, residual=number > 0)
            )
            side = -(-side // stride)
    return made


class InvertedBottleneck(nn.Module):
    """(conv1x1, BN, swish), (depthwise conv, BN, swish), squeeze and excitation, conv1x1, BN; the input is added.

    The first of these widens the map, and is left out where `block.expansion` is 1. The hidden layer of squeeze and
    excitation has a quarter of the input's channels.
    """

    block: Block
    norm: ModuleFactory
    conv: ModuleFactory

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H / stride, W / stride, features)."""
        block, channels = self.block, x.shape[-1]
        inner = block.expansion * channels
        y = x
        if block.expansion > 1:
            y = nn.swish(self.norm(name="bn0")(self.conv(inner, 1, name="expand_conv")(y)))
        depthwise = self.conv(inner, block.size, block.stride, groups=inner, edges=block.edges, name="depthwise_conv")
        y = nn.swish(self.norm(name="bn1")(depthwise(y)))
        means = y.mean((1, 2), keepdims=True)
        hidden = nn.swish(self.conv(max(1, channels // 4), 1, use_bias=True, name="se_reduce")(means))
        y = y * nn.sigmoid(self.conv(inner, 1, use_bias=True, name="se_expand")(hidden))
        y = self.norm(name="bn2")(self.conv(block.features, 1, name="project_conv")(y))
        return y + x if block.residual else y


class EfficientNet(nn.Module):
    """The encoder. It has no maximum, so `pool` is of no use here."""

    norm: ModuleFactory
    conv: ModuleFactory
    stem: Stem = plain_stem
    pool: Pool = plain_pool
    depths: Sequence[int] = _DEPTHS
    width: int = _WIDTH
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """(B, H, W, 1 or 3) in [0, 1] -> five features at 1/2, 1/4, 1/8, 1/16 and 1/32 of H and W."""
        made = block_table(self.depths, self.width)
        first = partial(self.conv, made.stem_features, STEM_SIZE, 2, edges=made.stem_edges, name="conv_stem")
        x = nn.swish(self.norm(name="bn0")(self.stem(first, None, x)))
        features = [x]
        bottleneck = nn.remat(InvertedBottleneck) if self.remat else InvertedBottleneck
        number = 0
        for level in made.levels:
            for block in level:
                x = bottleneck(block, norm=self.norm, conv=self.conv, name=f"blocks_{number}")(x)
                number += 1
            features.append(x)
        return features
