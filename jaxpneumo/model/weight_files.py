"""Files of weights: name -> array, whatever library wrote them, or words about why not; and .safetensors written.

.h5 of Keras, .safetensors, and PyTorch's .pth and .pt. Nothing is unpickled: the last two go through
torch.load(weights_only=True), which needs PyTorch; the others do not.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxpneumo.process.errors import InputError

# Under which training programs keep the weights in a file that holds more, in this order
_MAPPINGS = ("state_dict", "model_state_dict", "model", "net", "weights")
_DAMAGED = "The file is damaged, cut short or of another kind: copy or download it again."
_KERAS_3 = (
    "is of Keras 3, whose weight files number the layers and do not name them. Load the model in Keras and save it "
    'as legacy HDF5, model.save("model.h5"); give that file.'
)


def read_weights(path: Path | str) -> dict[str, np.ndarray]:
    """Reads name -> array from a .h5, .safetensors, .pth or .pt file.

    Keras' names are "layer/leaf:0", the others' as they are in the file. Types are the file's own; bfloat16 of
    PyTorch comes as float32.

    Raises:
      InputError: the file is missing, unreadable, of another kind, or needs a package that is not installed.
    """
    path = Path(path)
    readers = {
        ".h5": _read_h5,
        ".hdf5": _read_h5,
        ".safetensors": _read_safetensors,
        ".pth": _read_torch,
        ".pt": _read_torch,
    }
    if path.suffix not in (*readers, ".keras"):
        raise InputError(f"{path}: weights must be a .h5, .safetensors, .pth or .pt file.")
    if not path.exists():
        raise InputError(f"{path}: no such file. docs/data.md says where ImageNet weights come from.")
    if not path.is_file():
        raise InputError(f"{path} is a folder. Give the file of weights.")
    if path.suffix == ".keras":
        raise InputError(f"{path} {_KERAS_3}")
    try:
        weights = readers[path.suffix](path)
    except InputError:
        raise
    except OSError as error:
        reason = f"{error.strerror}." if error.strerror else f"{_first_line(error)}. {_DAMAGED}"
        raise InputError(f"{path} cannot be read as {path.suffix} weights: {reason}") from error
    except Exception as error:  # a damaged file makes the three libraries raise nearly anything
        raise InputError(f"{path} cannot be read as {path.suffix} weights: {_first_line(error)}. {_DAMAGED}") from error
    if not weights:
        raise InputError(f"{path} holds no weights.")
    return weights


def to_safetensors(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """A .safetensors file of name -> array, with texts that its header holds beside them."""
    from safetensors.numpy import save

    return save(dict(arrays), dict(metadata))


def from_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of the bytes of a .safetensors file that `to_safetensors` made."""
    from safetensors.numpy import load

    return load(data)


def _read_h5(path: Path) -> dict[str, np.ndarray]:
    import h5py

    weights: dict[str, np.ndarray] = {}

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if "/vars/" in f"/{name}":
            raise InputError(f"{path} {_KERAS_3}")
        # The group is the layer; what lies between it and the leaf is the scope of a Keras session.
        layer, leaf = name.split("/")[0], name.split("/")[-1]
        # Keras 3 leaves out the tensor's number where it writes this format.
        key = f"{layer}/{leaf.removesuffix(':0')}:0"
        if key in weights:
            raise InputError(
                f"{path}: the layer {layer} is a model of its own. Save the weights of that model alone, "
                f'model.get_layer("{layer}").save_weights("weights.h5") in Keras 2.'
            )
        weights[key] = item[()]

    with h5py.File(path) as file:
        group = file.get("model_weights", file)
        if isinstance(group, h5py.Group):
            group.visititems(visit)
    return weights


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except AttributeError as error:
        raise InputError(f"{path} holds numbers of a type that NumPy lacks ({error}). Save it as float32.") from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch  # pyright: ignore[reportMissingImports]  # not needed otherwise
    except ImportError as error:
        raise InputError(
            f"{path}: .pth files need PyTorch (pip install torch), or convert the file to .safetensors once."
        ) from error
    from pickle import UnpicklingError

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise InputError(
            f"{path} cannot be read as {path.suffix} weights: it holds more than arrays, and nothing else is unpickled "
            "here. In PyTorch, save the weights alone: torch.save(model.state_dict(), FILE). Or it is damaged: then "
            "copy or download it again."
        ) from error

    def arrays(mapping: Any) -> dict[str, Any]:
        pairs = mapping.items() if isinstance(mapping, Mapping) else ()
        return {name: value for name, value in pairs if isinstance(name, str) and isinstance(value, torch.Tensor)}

    weights = arrays(content)
    if not weights and isinstance(content, Mapping):
        weights = next((found for name in _MAPPINGS if (found := arrays(content.get(name)))), {})
    if not weights:
        known = f" Its entries are {', '.join(map(str, list(content)[:6]))}." if isinstance(content, Mapping) else ""
        raise InputError(
            f"{path} holds no weights by name, also not under {', '.join(_MAPPINGS)}.{known} In PyTorch, save the "
            "weights alone: torch.save(model.state_dict(), FILE)."
        )
    return {
        name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy() for name, tensor in weights.items()
    }


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0][:200] if text else type(error).__name__).rstrip(".")
