"""A trained network made ready for prediction: BatchNorms folded into the convolutions before them.

With fixed statistics BatchNorm is x * scale + shift. Behind a convolution the scale goes into the kernel, and only the
shift is left to add. Where a ReLU or a sum comes between, as before the units of the pre-activation encoder, BatchNorm
stays.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpneumo.model.unet import ENCODERS

# convolution: the BatchNorm that follows it, by the modules they lie in
_BLOCK = {
    "conv1": "bn1",
    "conv2": "bn2",
    "conv3": "bn3",
    "downsample_conv": "downsample_bn",
    "expand_conv": "bn0",
    "depthwise_conv": "bn1",
    "project_conv": "bn2",
}
_PREACTIVATION_UNIT = {"conv1": "bn2"}
_STEM = {"conv0": "bn0", "conv1": "bn1", "layer0_conv1": "layer0_bn1", "conv_stem": "bn0"}


class FoldableNorm(nn.BatchNorm):
    """BatchNorm. Without statistics it is what `fold` has left of it: a bias."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.is_initializing() or self.has_variable("batch_stats", "mean"):
            return super().__call__(x)
        bias = self.param("bias", self.bias_init, (x.shape[-1],)).astype(x.dtype)
        # A packed map (`model.packed`) as the convolution made it: cuDNN then adds the bias itself.
        columns = x.reshape(*x.shape[:3], -1)
        return (columns + jnp.tile(bias, columns.shape[-1] // len(bias))).reshape(x.shape)


def fold(variables: dict[str, Any], encoder: str, dtype: jnp.dtype) -> dict[str, Any]:
    """Variables that give the same logits, to rounding, in fewer operations.

    They are for `UNet.apply(..., train=False)` of a network with `FoldableNorm`, which `rewrites_for` chooses.

    Args:
      variables: {"params", "batch_stats"} of a `UNet`.
      encoder: its encoder.
      dtype: its type of computation, in which kernels are stored from then on.

    Returns:
      {"params", "batch_stats"}: a folded BatchNorm keeps a bias and has no statistics.
    """
    params, statistics = variables["params"], variables["batch_stats"]
    kind = ENCODERS[encoder]
    inside = _PREACTIVATION_UNIT if encoder == "resnet34_preact" else _BLOCK
    folded = dict(params)
    left = {}
    for part, pairs, nested, epsilon in (
        ("encoder", _STEM, inside, kind.epsilon),
        ("decoder", {}, _BLOCK, kind.decoder_epsilon),
    ):
        folded[part], left[part] = _fold_module(params[part], statistics[part], pairs, epsilon)
        for name, module in params[part].items():
            if not nested.keys().isdisjoint(module):
                folded[part][name], left[part][name] = _fold_module(module, statistics[part][name], nested, epsilon)
    kernels = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.astype(dtype) if path[-1].key == "kernel" else leaf, folded
    )
    return {"params": kernels, "batch_stats": left}


def _fold_module(
    params: dict[str, Any], statistics: dict[str, Any], pairs: dict[str, str], epsilon: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    params, statistics = dict(params), dict(statistics)
    for convolution, norm in pairs.items():
        if convolution not in params:
            continue
        mean, variance = statistics[norm]["mean"], statistics[norm]["var"]
        scale = params[norm]["scale"] * jax.lax.rsqrt(variance + epsilon)
        params[convolution] = {"kernel": params[convolution]["kernel"] * scale}
        params[norm] = {"bias": params[norm]["bias"] - mean * scale}
        del statistics[norm]
    return params, statistics
