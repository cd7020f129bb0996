"""The blocks of the deeper encoders: ResNet-50's bottleneck, and SE-ResNeXt's with groups and channel weights.

Both take the place of `BasicBlock` in `resnet.ResNet` and give four times its channels. Their modules have the names
of torchvision and segmentation_models_pytorch.
"""

import flax.linen as nn
import jax

from jaxpneumo.model.resnet import ModuleFactory

EXPANSION = 4


class SEModule(nn.Module):
    """Squeeze and excitation (Hu et al. 2018): each channel is weighed by two layers that see the means of all."""

    reduction: int
    conv: ModuleFactory

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        channels = x.shape[-1]
        means = x.mean((1, 2), keepdims=True)
        hidden = nn.relu(self.conv(channels // self.reduction, 1, use_bias=True, name="fc1")(means))
        return x * nn.sigmoid(self.conv(channels, 1, use_bias=True, name="fc2")(hidden))


class Bottleneck(nn.Module):
    """(conv1x1, BN, ReLU), (conv3x3, BN, ReLU), conv1x1, BN, add, ReLU; the stride is the 3x3's, as in ResNet v1.5.

    Where the shape changes, the shortcut is a projection with a BN.

    Attributes:
      features: a quarter of the channels returned.
      stride: 1 or 2.
      groups: of the 3x3 convolution.
      group_width: channels of a group where `features` is 64, and in proportion elsewhere.
      reduction: hidden channels of the SE module are so many times fewer; 0 is no SE module.
    """

    features: int
    stride: int
    norm: ModuleFactory
    conv: ModuleFactory
    groups: int = 1
    group_width: int = 64
    reduction: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H / stride, W / stride, 4 * features)."""
        # A tiny network keeps its groups, of one channel at least.
        inner = self.groups * max(1, self.features * self.group_width // 64)
        y = nn.relu(self.norm(name="bn1")(self.conv(inner, 1, name="conv1")(x)))
        y = self.conv(inner, 3, self.stride, groups=self.groups, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = self.norm(name="bn3")(self.conv(EXPANSION * self.features, 1, name="conv3")(y))
        if self.reduction:
            y = SEModule(self.reduction, self.conv, name="se_module")(y)
        if x.shape != y.shape:
            x = self.conv(EXPANSION * self.features, 1, self.stride, name="downsample_conv")(x)
            x = self.norm(name="downsample_bn")(x)
        return nn.relu(x + y)


class SEResNeXtBottleneck(Bottleneck):
    """The bottleneck of se_resnext50_32x4d: 32 groups of 4 channels, and an SE module behind the last BN."""

    groups: int = 32
    group_width: int = 4
    reduction: int = 16
