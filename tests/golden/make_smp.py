"""Writes the golden values of the deeper encoders and of a decoder with attention.

They are what segmentation_models_pytorch computes on a CPU in float32, and in float64 with attention and EfficientNet:
random weights make large maps, whose rounding the sigmoids of attention enlarge, and of EfficientNet's gradients some
are 0. EfficientNet is without its drop connect, which draws at random which blocks are left out.
Made with segmentation_models_pytorch 0.6.0 and PyTorch 2.13.0. Weights and images are drawn by ../shared/golden, which
lies beside the checkout. Run it in an environment with both libraries:

    python tests/golden/make_smp.py [FILE ...]

Each file holds, for a batch of three images of 64 pixels:
  names: "name|shape" of every weight, in PyTorch's order and layout.
  features: mean, standard deviation and largest magnitude of the five encoder features, (5, 3), in evaluation.
  eval_logits, train_logits: (3, 64, 64).
  gradient_names, gradient_norms: of the first step's loss, one a parameter that has a gradient.
  losses: BCE + Dice loss of three Adam(1e-3) steps, each before its step.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared" / "golden"
# file: the arguments of `Unet`
FILES = {
    "smp_resnet50_unet.npz": {"encoder_name": "resnet50"},
    "smp_se_resnext50_unet.npz": {"encoder_name": "se_resnext50_32x4d"},
    "smp_efficientnet_b4_unet.npz": {"encoder_name": "efficientnet-b4"},
    "smp_resnet34_scse_unet.npz": {"encoder_name": "resnet34", "decoder_attention_type": "scse"},
}
DOUBLE = ("smp_resnet34_scse_unet.npz", "smp_efficientnet_b4_unet.npz")
STEPS = 3


def loss_of(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Mean BCE of the pixels plus the mean over images of 1 - soft Dice (smoothed by 1); both (B, 1, H, W)."""
    probabilities, axes = torch.sigmoid(logits), (1, 2, 3)
    overlap = (probabilities * masks).sum(axes)
    dice = (2 * overlap + 1) / (probabilities.sum(axes) + masks.sum(axes) + 1)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, masks) + (1 - dice).mean()


def golden_values(network: torch.nn.Module, weights: Any, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Fills the network with the weights of `weights`, trains it in `dtype`, and returns the arrays of its file."""
    state = network.state_dict()
    kinds = {name: weights.torch_kind(name, value.ndim) for name, value in state.items()}
    for name, kind in kinds.items():
        if kind:
            state[name] = torch.from_numpy(weights.array(name, tuple(state[name].shape), kind))
    network.load_state_dict(state)
    network.to(dtype)
    pixels, findings = weights.batch(3, 64)
    images = (torch.from_numpy(pixels).float() / 255).to(dtype)[:, None].repeat(1, 3, 1, 1)
    masks = torch.from_numpy(findings).to(dtype)[:, None]
    named = [f"{name}|{','.join(map(str, state[name].shape))}" for name, kind in kinds.items() if kind]
    values: dict[str, Any] = {"names": np.array(named)}
    network.eval()
    with torch.no_grad():
        features = network.encoder(images)[1:]
        values["features"] = np.array([[f.mean(), f.std(), f.abs().max()] for f in features], np.float32)
        values["eval_logits"] = network(images)[:, 0].float().numpy()
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        logits = network(images)
        loss = loss_of(logits, masks)
        loss.backward()
        if step == 0:
            values["train_logits"] = logits.detach()[:, 0].float().numpy()
            gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
            norms = {name: float(gradient.norm()) for name, gradient in gradients.items() if gradient is not None}
            values["gradient_names"] = np.array(list(norms))
            values["gradient_norms"] = np.array(list(norms.values()), np.float32)
        losses.append(loss.item())
        optimizer.step()
    return values | {"losses": np.array(losses, np.float32)}


def main() -> None:
    """Writes the files beside this one, all or those that are named."""
    sys.path.insert(0, str(SHARED))
    import weights

    # A torchvision without its compiled part fails on import, as two of its operators are not defined.
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            torch.library.define(f"torchvision::{operator}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    import segmentation_models_pytorch

    for file in sys.argv[1:] or FILES:
        network = segmentation_models_pytorch.Unet(**FILES[file], encoder_weights=None, classes=1)
        if hasattr(network.encoder, "_drop_connect_rate"):
            network.encoder._drop_connect_rate = 0.0
        values = golden_values(network, weights, torch.float64 if file in DOUBLE else torch.float32)
        np.savez_compressed(HERE / file, **values)
        print(file, sum(p.numel() for p in network.parameters()), values["losses"], values["features"])


if __name__ == "__main__":
    main()
