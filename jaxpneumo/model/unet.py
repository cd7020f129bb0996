"""The ResNet34-UNet: an encoder, five decoder blocks with skips, one logit a pixel (papers' Table 3)."""

import dataclasses
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpneumo.model.convolution import Convolution, convolve, he_uniform
from jaxpneumo.model.resnet import ModuleFactory, Norm, PreactivationResNet, ResNet


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


def backend_rewrites() -> dict[str, bool]:
    """The switches of `UNet` that are measured to be faster on this backend, in training and prediction."""
    cpu = jax.default_backend() == "cpu"
    return {"fold_upsampling": cpu, "explicit_gradients": cpu}


def upsample(x: jax.Array) -> jax.Array:
    """Nearest-neighbour enlargement by two of (B, H, W, C)."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def convolve_upsampled(x: jax.Array, kernel: jax.Array, explicit_gradients: bool = False) -> jax.Array:
    """`upsample` and then a 3x3 convolution, without the enlarged map: 16 products for every 36.

    A row of the result sees two rows of x, since of the three enlarged rows under the kernel two are equal: the
    even rows see row y - 1 through the kernel's first row and row y through the sum of the others, the odd ones
    mirrored. With columns alike, one 2x2 convolution gives the four neighbours of a result as channels.

    Args:
      x: (B, H, W, C).
      kernel: (3, 3, C, O).
      explicit_gradients: as for `convolve`.

    Returns:
      (B, 2 H, 2 W, O), equal to the plain convolution to rounding.
    """
    batch, height, width, channels = x.shape
    # (column parity, column tap, row parity, row tap, C, O); odd before even, see the crop below
    kernels = _taps_of_pairs(jnp.moveaxis(_taps_of_pairs(kernel), 2, 0))
    kernels = kernels.transpose(3, 1, 4, 2, 0, 5).reshape(2, 2, channels, -1)
    y = convolve(x, kernels, 1, 1, explicit_gradients).reshape(batch, height + 1, width + 1, 2, 2, -1)
    # An even result lies one place later than the odd one before it: odd first, they interleave in order, with one
    # row and column too many at each border.
    y = y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height + 2, 2 * width + 2, -1)
    return y[:, 1:-1, 1:-1]


def _taps_of_pairs(kernel: jax.Array) -> jax.Array:
    """Three taps on enlarged rows (3, ...) as two taps on the rows themselves (2 parities, odd first; 2 taps, ...)."""
    first, middle, last = kernel
    return jnp.stack([jnp.stack([first + middle, last]), jnp.stack([first, middle + last])])


class UpsampledConvolution(nn.Module):
    """conv3x3 over the enlarged x beside the skip; with `fold`, as `convolve_upsampled` plus one of the skip alone."""

    features: int
    dtype: jnp.dtype
    fold: bool
    explicit_gradients: bool

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array | None) -> jax.Array:
        channels = x.shape[-1]
        total = channels if skip is None else channels + skip.shape[-1]
        kernel = self.param("kernel", he_uniform, (3, 3, total, self.features)).astype(self.dtype)
        x = x.astype(self.dtype)
        skip = None if skip is None else skip.astype(self.dtype)
        if not self.fold:
            x = upsample(x)
            x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
            return convolve(x, kernel, 1, 1, self.explicit_gradients)
        y = convolve_upsampled(x, kernel[:, :, :channels], self.explicit_gradients)
        return y if skip is None else y + convolve(skip, kernel[:, :, channels:], 1, 1, self.explicit_gradients)


class DecoderBlock(nn.Module):
    """Nearest x2, concatenation of the skip where there is one, then (conv3x3, BN, ReLU) twice."""

    features: int
    norm: ModuleFactory
    conv: ModuleFactory
    upsampled_conv: ModuleFactory

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array | None) -> jax.Array:
        x = nn.relu(self.norm(name="bn1")(self.upsampled_conv(self.features, name="conv1")(x, skip)))
        x = self.conv(self.features, 3, name="conv2")(x)
        return nn.relu(self.norm(name="bn2")(x))


class Decoder(nn.Module):
    """Five blocks from 1/32 of the input's resolution back to all of it."""

    features: Sequence[int]
    norm: ModuleFactory
    conv: ModuleFactory
    upsampled_conv: ModuleFactory
    remat: bool

    @nn.compact
    def __call__(self, features: Sequence[jax.Array]) -> jax.Array:
        *skips, x = features
        block = nn.remat(DecoderBlock) if self.remat else DecoderBlock
        for i, width in enumerate(self.features):
            skip = skips[-1 - i] if i < len(skips) else None
            x = block(width, self.norm, self.conv, self.upsampled_conv, name=f"block{i}")(x, skip)
        return x


class UNet(nn.Module):
    """A U-Net over a ResNet encoder, with one logit a pixel.

    Attributes:
      encoder: "resnet34_preact" (the papers' network, Keras segmentation_models; 24,438,804 parameters) or
        "resnet34" (torchvision, segmentation_models_pytorch; 24,436,369 parameters).
      dtype: type of the computation, float32 or bfloat16 (float64 for tests). Parameters, statistics and logits stay
        float32.
      input_convolution: learn a 1x1 convolution from the grey channel to three (Exp1) instead of repeating it.
      momentum: of the BatchNorm statistics (weight of the old value); None is the source library's.
      depths, width: units of each stage and channels of the first; smaller ones make a tiny network for tests.
      grey_stem: convolve a grey image as one channel, with the first kernel summed over its three; False repeats the
        image. Same variables and, to rounding, same results.
      fold_upsampling: never make the decoder's enlarged maps (`convolve_upsampled`). Same variables and results.
      explicit_gradients: write the gradients of convolutions out (`model.convolution`) instead of leaving them to XLA.
        Same variables and, to rounding, same gradients; reverse mode only.
      remat: keep only the blocks' inputs for the gradient and compute the rest again: less memory, more time.
    """

    encoder: str = "resnet34_preact"
    dtype: jnp.dtype = jnp.float32
    input_convolution: bool = False
    momentum: float | None = None
    depths: Sequence[int] = (3, 4, 6, 3)
    width: int = 64
    grey_stem: bool = True
    fold_upsampling: bool = False
    explicit_gradients: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, train: bool) -> jax.Array:
        """Computes the logits of pneumothorax.

        Args:
          image: (B, H, W, 1) or (B, H, W, 3) in [0, 1]; H and W multiples of 32.
          train: normalise by the batch's statistics (and update the running ones) instead of the running ones.

        Returns:
          Logits (B, H, W), float32 (float64 of a float64 network).

        Raises:
          ValueError: H or W is no multiple of 32, or the encoder is unknown.
        """
        if self.encoder not in ENCODERS:
            raise ValueError(f"unknown encoder {self.encoder!r}; there are {', '.join(ENCODERS)}")
        if image.shape[1] % 32 or image.shape[2] % 32:
            raise ValueError(f"image height and width must be multiples of 32, not {image.shape[1:3]}")
        kind = ENCODERS[self.encoder]
        norm = functools.partial(
            Norm,
            use_running_average=not train,
            momentum=kind.momentum if self.momentum is None else self.momentum,
            dtype=self.dtype,
        )
        conv = functools.partial(Convolution, dtype=self.dtype, explicit_gradients=self.explicit_gradients)
        x = image.astype(self.dtype)
        if self.input_convolution:
            x = nn.Conv(3, (1, 1), dtype=self.dtype, name="input_convolution")(x)
        elif x.shape[-1] == 1 and not self.grey_stem:
            x = jnp.repeat(x, 3, axis=-1)
        features = kind.module(
            norm=functools.partial(norm, epsilon=kind.epsilon),
            conv=conv,
            dtype=self.dtype,
            depths=self.depths,
            width=self.width,
            remat=self.remat,
            name="encoder",
        )(x)
        x = Decoder(
            [4 * self.width, 2 * self.width, self.width, self.width // 2, self.width // 4],
            norm=functools.partial(norm, epsilon=kind.decoder_epsilon),
            conv=conv,
            upsampled_conv=functools.partial(
                UpsampledConvolution,
                dtype=self.dtype,
                fold=self.fold_upsampling,
                explicit_gradients=self.explicit_gradients,
            ),
            remat=self.remat,
            name="decoder",
        )(features)
        glorot_uniform = nn.initializers.glorot_uniform()
        logits = conv(1, 3, use_bias=True, kernel_init=glorot_uniform, name="segmentation_head")(x)
        return logits[..., 0].astype(jnp.promote_types(self.dtype, jnp.float32))
