"""metadata.json of a shared folder: MONAI's keys, so that its tools and readers find what they look for."""

from importlib import metadata
from typing import Any

from jaxpneumo.export.description import are_of_new_images, was_evaluated

ABSENT = "not used"  # for the versions of what MONAI asks for and this network does not need


def monai_metadata(description: dict[str, Any]) -> dict[str, Any]:
    """The mandatory keys of MONAI's bundle specification and most of its optional ones, and all of the description.

    Args:
      description: the result of `description.describe`. Scores of other settings than its own, and of training
        images, are left out of MONAI's.
    """
    evaluation = description["evaluation"] or {}
    scores = evaluation if was_evaluated(description) and are_of_new_images(description) else {}
    return {
        "version": description["model"][:12],
        "monai_version": ABSENT,
        "pytorch_version": ABSENT,
        "numpy_version": metadata.version("numpy"),
        "optional_packages_version": {name: metadata.version(name) for name in ("jax", "flax", "safetensors")},
        "name": description["run"],
        "task": "Segmentation of pneumothorax in frontal chest radiographs",
        "description": f"A U-Net with the encoder {description['encoder']}. {description['note']}",
        "authors": "not stated",
        "copyright": "not stated",
        "intended_use": description["note"],
        "data_source": evaluation.get("data", "not stated"),
        "data_type": "synthetic radiographs" if description["synthetic"] else "radiographs",
        "image_classes": "grey levels from 0 to 255 with white bones, divided by 255",
        "label_classes": "1 is pneumothorax, 0 is everything else",
        "pred_classes": "the probability of pneumothorax of each pixel",
        "eval_metrics": {name: value[0] for name, value in scores.items() if isinstance(value, tuple)},
        "network_data_format": {
            "inputs": {"image": _tensor(description["size"], "grey levels")},
            "outputs": {"pred": _tensor(description["size"], "probability of pneumothorax")},
        },
        "jaxpneumo": description,
    }


def _tensor(size: int, channel: str) -> dict[str, Any]:
    return {
        "type": "image",
        "format": "magnitude",
        "modality": "DX",
        "num_channels": 1,
        "spatial_shape": [size, size],
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": False,
        "channel_def": {"0": channel},
    }
