"""The ResNet-UNet: an encoder, five decoder blocks with skips, one logit a pixel (papers' Table 3)."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpneumo.model.attention import SCSE
from jaxpneumo.model.bottleneck import Bottleneck, SEResNeXtBottleneck
from jaxpneumo.model.convolution import Convolution, Convolve, plain_convolve
from jaxpneumo.model.efficientnet import EfficientNet
from jaxpneumo.model.resnet import ModuleFactory, Pool, PreactivationResNet, ResNet, Stem, plain_pool, plain_stem


@dataclasses.dataclass(frozen=True)
class EncoderKind:
    """What changes with the encoder: its module and the BatchNorm constants of the library it comes from."""

    module: ModuleFactory
    epsilon: float
    decoder_epsilon: float
    momentum: float
    decoder_momentum: float


ENCODERS = {
    "resnet34_preact": EncoderKind(
        PreactivationResNet, epsilon=2e-5, decoder_epsilon=1e-3, momentum=0.99, decoder_momentum=0.99
    ),
    # PyTorch's momentum 0.1 weighs the new value; linen's weighs the old one.
    "resnet34": EncoderKind(ResNet, epsilon=1e-5, decoder_epsilon=1e-5, momentum=0.9, decoder_momentum=0.9),
    "resnet50": EncoderKind(
        partial(ResNet, block=Bottleneck), epsilon=1e-5, decoder_epsilon=1e-5, momentum=0.9, decoder_momentum=0.9
    ),
    "se_resnext50_32x4d": EncoderKind(
        partial(ResNet, block=SEResNeXtBottleneck, stem_name="layer0_", pool_before=0),
        epsilon=1e-5,
        decoder_epsilon=1e-5,
        momentum=0.9,
        decoder_momentum=0.9,
    ),
    "efficientnet-b4": EncoderKind(
        EfficientNet, epsilon=1e-3, decoder_epsilon=1e-5, momentum=0.99, decoder_momentum=0.9
    ),
}


def enlarge(x: jax.Array, skip: jax.Array | None) -> jax.Array:
    """x, enlarged by two (nearest neighbour), with the skip's channels behind its own."""
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return x if skip is None else jnp.concatenate([x, skip], axis=-1)


def plain_upsample(conv: Convolution, x: jax.Array, skip: jax.Array | None) -> jax.Array:
    """The convolution of what `enlarge` returns."""
    return conv(enlarge(x, skip))


def plain_decoder_end(block: partial, head: Convolution, x: jax.Array) -> jax.Array:
    """The last block and the head: (B, H / 2, W / 2, C) -> logits (B, H, W, 1)."""
    return head(block()(x, None))


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of the network that have faster forms in `rewrites`; by default the plain ones.

    A form gets the modules that it computes and uses their weights, so that every form has the same variables and, to
    rounding, the same results. A module that it may build otherwise comes as its class with all arguments (`partial`).

    Attributes:
      convolve: every square convolution, (x, kernel, stride, padding); the kernel's shape tells the groups.
      norm: BatchNorm's class, for maps of any number of dimensions with the channels last.
      stem: the encoder's first convolution with the normalisation of its input, (convolution, norm or None, image).
      pool: the encoder's maximum, of a map without negative values, (map, padding before).
      upsample: a decoder block's first convolution, (convolution, x, skip or None).
      decoder_end: the last decoder block and the head, (block, head, x).
    """

    convolve: Convolve = plain_convolve
    norm: type[nn.BatchNorm] = nn.BatchNorm
    stem: Stem = plain_stem
    pool: Pool = plain_pool
    upsample: Callable[[Convolution, jax.Array, jax.Array | None], jax.Array] = plain_upsample
    decoder_end: Callable[[partial, Convolution, jax.Array], jax.Array] = plain_decoder_end


class DecoderBlock(nn.Module):
    """Nearest x2, concatenation of the skip where there is one, then (conv3x3, BN, ReLU) twice.

    With `attention`, a class of modules, one weighs the map with its skip and another the block's result.
    """

    features: int
    norm: ModuleFactory
    conv: Callable[..., Convolution]
    upsample: Callable[[Convolution, jax.Array, jax.Array | None], jax.Array]
    attention: ModuleFactory | None = None

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array | None) -> jax.Array:
        conv1 = self.conv(self.features, 3, name="conv1")
        if self.attention is None or skip is None:
            x = self.upsample(conv1, x, skip)
        else:
            x = conv1(self.attention(name="attention1")(enlarge(x, skip)))
        x = nn.relu(self.norm(name="bn1")(x))
        x = self.conv(self.features, 3, name="conv2")(x)
        x = nn.relu(self.norm(name="bn2")(x))
        return x if self.attention is None else self.attention(name="attention2")(x)


class Decoder(nn.Module):
    """Five blocks from 1/32 of the input's resolution back to all of it, four of them with a skip, and the head.

    With `hypercolumns`, the head sees the maps of all blocks, enlarged linearly, coarse before fine.
    """

    features: Sequence[int]
    block: partial
    end: Callable[[partial, Convolution, jax.Array], jax.Array]
    head: Convolution
    hypercolumns: bool = False

    @nn.compact
    def __call__(self, features: Sequence[jax.Array]) -> jax.Array:
        *skips, x = features
        maps = []
        for i, skip in enumerate(reversed(skips)):
            x = self.block(self.features[i], name=f"block{i}")(x, skip)
            maps.append(x)
        last = partial(self.block, self.features[-1], name=f"block{len(skips)}")
        if not self.hypercolumns:
            return self.end(last, self.head, x)
        x = last()(x, None)
        columns = [jax.image.resize(y, (*x.shape[:3], y.shape[-1]), "bilinear") for y in maps]
        return self.head(jnp.concatenate([*columns, x], axis=-1))


class UNet(nn.Module):
    """A U-Net over a ResNet or EfficientNet encoder, with one logit a pixel.

    Attributes:
      encoder: "resnet34_preact" (the papers' network, Keras segmentation_models; 24,438,804 parameters); of
        segmentation_models_pytorch "resnet34", "resnet50" (both torchvision's; 24,436,369 and 32,521,105 parameters),
        "se_resnext50_32x4d" (34,523,969 parameters) and "efficientnet-b4" (19,419,289 parameters; the library counts
        806,400 more, of a convolution behind the encoder's last map that it never applies).
      dtype: type of the computation, float32 or bfloat16 (float64 for tests). Parameters, statistics and logits stay
        float32.
      input_convolution: learn a 1x1 convolution from the grey channel to three (Exp1) instead of repeating it.
      momentum: of the BatchNorm statistics (weight of the old value); None is the source library's.
      depths, width: units of each stage and channels of the first; smaller ones make a tiny network for tests.
        "efficientnet-b4" has other numbers, in proportion to these (`efficientnet.block_table`).
      parts: the plain parts, or what `rewrites.rewrites_for` chooses.
      remat: keep only the blocks' inputs for the gradient and compute the rest again: less memory, more time.
      attention: "none", or "scse" in every decoder block (`attention.SCSE`).
      hypercolumns: the head sees the maps of all decoder blocks.
      classifier: a head on the means of the encoder's last map says whether the image shows anything (`outputs`).
    """

    encoder: str = "resnet34_preact"
    dtype: jnp.dtype = jnp.float32
    input_convolution: bool = False
    momentum: float | None = None
    depths: Sequence[int] = (3, 4, 6, 3)
    width: int = 64
    parts: Parts = Parts()
    remat: bool = False
    classifier: bool = False
    attention: str = "none"
    hypercolumns: bool = False

    def __call__(self, image: jax.Array, train: bool) -> jax.Array:
        """The logits of the pixels alone, see `outputs`."""
        return self.outputs(image, train)[0]

    @nn.compact
    def outputs(self, image: jax.Array, train: bool) -> tuple[jax.Array, jax.Array | None]:
        """Computes the logits of pneumothorax, of each pixel and of the image.

        Args:
          image: (B, H, W, 1) or (B, H, W, 3) in [0, 1]; H and W multiples of 32.
          train: normalise by the batch's statistics (and update the running ones) instead of the running ones.

        Returns:
          Logits (B, H, W), float32 (float64 of a float64 network); and of the images (B,), None without `classifier`.

        Raises:
          ValueError: H or W is no multiple of 32, or encoder or attention are unknown.
        """
        if self.encoder not in ENCODERS:
            raise ValueError(f"unknown encoder {self.encoder!r}; there are {', '.join(ENCODERS)}")
        if self.attention not in ("none", "scse"):
            raise ValueError(f"unknown attention {self.attention!r}; there are none and scse")
        if image.shape[1] % 32 or image.shape[2] % 32:
            raise ValueError(f"image height and width must be multiples of 32, not {image.shape[1:3]}")
        kind, parts = ENCODERS[self.encoder], self.parts
        conv = partial(Convolution, dtype=self.dtype, convolve=parts.convolve)
        norm = partial(
            parts.norm,
            use_running_average=not train,
            dtype=self.dtype,
        )
        momentum, decoder_momentum = (
            each if self.momentum is None else self.momentum for each in (kind.momentum, kind.decoder_momentum)
        )
        x = image.astype(self.dtype)
        if self.input_convolution:
            x = nn.Conv(3, (1, 1), dtype=self.dtype, name="input_convolution")(x)
        features = kind.module(
            norm=partial(norm, epsilon=kind.epsilon, momentum=momentum),
            conv=conv,
            stem=parts.stem,
            pool=parts.pool,
            depths=self.depths,
            width=self.width,
            remat=self.remat,
            name="encoder",
        )(x)
        block = partial(
            nn.remat(DecoderBlock) if self.remat else DecoderBlock,
            norm=partial(norm, epsilon=kind.decoder_epsilon, momentum=decoder_momentum),
            conv=conv,
            upsample=parts.upsample,
            attention=partial(SCSE, conv) if self.attention == "scse" else None,
        )
        glorot_uniform = nn.initializers.glorot_uniform()
        logits = Decoder(
            [4 * self.width, 2 * self.width, self.width, self.width // 2, self.width // 4],
            block=block,
            # Faster forms are for the plain block alone.
            end=parts.decoder_end if self.attention == "none" else plain_decoder_end,
            head=conv(1, 3, use_bias=True, kernel_init=glorot_uniform, name="segmentation_head"),
            hypercolumns=self.hypercolumns,
            name="decoder",
        )(features)
        precise = jnp.promote_types(self.dtype, jnp.float32)
        finding = None
        if self.classifier:
            means = features[-1].astype(precise).mean((1, 2))
            finding = nn.Dense(1, dtype=precise, kernel_init=glorot_uniform, name="classifier")(means)[:, 0]
        return logits[..., 0].astype(precise), finding
