"""The ResNet34-UNet: an encoder, five decoder blocks with skips, one logit a pixel (papers' Table 3)."""

import dataclasses
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpneumo.model.resnet import ModuleFactory, PreactivationResNet, ResNet, convolution


@dataclasses.dataclass(frozen=True)
class EncoderKind:
    """What changes with the encoder: its module and the BatchNorm constants of the library it comes from."""

    module: type[nn.Module]
    epsilon: float
    decoder_epsilon: float
    momentum: float


ENCODERS = {
    "resnet34_preact": EncoderKind(PreactivationResNet, epsilon=2e-5, decoder_epsilon=1e-3, momentum=0.99),
    # PyTorch's momentum 0.1 weighs the new value; linen's weighs the old one.
    "resnet34": EncoderKind(ResNet, epsilon=1e-5, decoder_epsilon=1e-5, momentum=0.9),
}


def upsample(x: jax.Array) -> jax.Array:
    """Nearest-neighbour enlargement by two of (B, H, W, C)."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class DecoderBlock(nn.Module):
    """Nearest x2, concatenation of the skip where there is one, then (conv3x3, BN, ReLU) twice."""

    features: int
    norm: ModuleFactory
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array | None) -> jax.Array:
        x = upsample(x)
        if skip is not None:
            x = jnp.concatenate([x, skip], axis=-1)
        for i in (1, 2):
            x = convolution(self.features, 3, dtype=self.dtype, name=f"conv{i}")(x)
            x = nn.relu(self.norm(name=f"bn{i}")(x))
        return x


class Decoder(nn.Module):
    """Five blocks from 1/32 of the input's resolution back to all of it."""

    features: Sequence[int]
    norm: ModuleFactory
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, features: Sequence[jax.Array]) -> jax.Array:
        *skips, x = features
        for i, width in enumerate(self.features):
            skip = skips[-1 - i] if i < len(skips) else None
            x = DecoderBlock(width, norm=self.norm, dtype=self.dtype, name=f"block{i}")(x, skip)
        return x


class UNet(nn.Module):
    """A U-Net over a ResNet encoder, with one logit a pixel.

    Attributes:
      encoder: "resnet34_preact" (the papers' network, Keras segmentation_models; 24,438,804 parameters) or
        "resnet34" (torchvision, segmentation_models_pytorch; 24,436,369 parameters).
      dtype: type of the computation, float32 or bfloat16. Parameters, statistics and logits stay float32.
      input_convolution: learn a 1x1 convolution from the grey channel to three (Exp1) instead of repeating it.
      momentum: of the BatchNorm statistics (weight of the old value); None is the source library's.
      depths, width: units of each stage and channels of the first; smaller ones make a tiny network for tests.
    """

    encoder: str = "resnet34_preact"
    dtype: jnp.dtype = jnp.float32
    input_convolution: bool = False
    momentum: float | None = None
    depths: Sequence[int] = (3, 4, 6, 3)
    width: int = 64

    @nn.compact
    def __call__(self, image: jax.Array, train: bool) -> jax.Array:
        """Computes the logits of pneumothorax.

        Args:
          image: (B, H, W, 1) or (B, H, W, 3) in [0, 1]; H and W multiples of 32.
          train: normalise by the batch's statistics (and update the running ones) instead of the running ones.

        Returns:
          Logits, float32 (B, H, W).

        Raises:
          ValueError: H or W is no multiple of 32, or the encoder is unknown.
        """
        if self.encoder not in ENCODERS:
            raise ValueError(f"unknown encoder {self.encoder!r}; there are {', '.join(ENCODERS)}")
        if image.shape[1] % 32 or image.shape[2] % 32:
            raise ValueError(f"image height and width must be multiples of 32, not {image.shape[1:3]}")
        kind = ENCODERS[self.encoder]
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=kind.momentum if self.momentum is None else self.momentum,
            dtype=self.dtype,
        )
        x = image.astype(self.dtype)
        if self.input_convolution:
            x = nn.Conv(3, (1, 1), dtype=self.dtype, name="input_convolution")(x)
        elif x.shape[-1] == 1:
            x = jnp.repeat(x, 3, axis=-1)
        features = kind.module(
            norm=functools.partial(norm, epsilon=kind.epsilon),
            dtype=self.dtype,
            depths=self.depths,
            width=self.width,
            name="encoder",
        )(x)
        x = Decoder(
            [4 * self.width, 2 * self.width, self.width, self.width // 2, self.width // 4],
            norm=functools.partial(norm, epsilon=kind.decoder_epsilon),
            dtype=self.dtype,
            name="decoder",
        )(features)
        logits = nn.Conv(
            1,
            (3, 3),
            padding=1,
            dtype=self.dtype,
            kernel_init=nn.initializers.glorot_uniform(),
            name="segmentation_head",
        )(x)
        return logits[..., 0].astype(jnp.float32)
