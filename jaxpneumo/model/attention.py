"""Attention of the decoder: maps weighed by channel and by pixel, as segmentation_models_pytorch's "scse"."""

import flax.linen as nn
import jax

from jaxpneumo.model.resnet import ModuleFactory


class SCSE(nn.Module):
    """Concurrent spatial and channel squeeze and excitation (Roy et al. 2018): the sum of both weighed maps.

    Attributes:
      conv: makes convolutions, as `DecoderBlock` has them.
      reduction: hidden channels of the channels' weights are so many times fewer, one at least.
    """

    conv: ModuleFactory
    reduction: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        channels = x.shape[-1]
        means = x.mean((1, 2), keepdims=True)
        hidden = self.conv(max(1, channels // self.reduction), 1, use_bias=True, name="channel1")(means)
        of_channel = nn.sigmoid(self.conv(channels, 1, use_bias=True, name="channel2")(nn.relu(hidden)))
        of_pixel = nn.sigmoid(self.conv(1, 1, use_bias=True, name="pixel")(x))
        return x * of_channel + x * of_pixel
