"""An exported ONNX model in ONNX Runtime or OpenVINO, on the CPU: arrays in, arrays out. JAX is not needed."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from jaxpneumo.process.errors import InputError
from jaxpneumo.process.machine import cores
from jaxpneumo.run.config import Predict

RUNTIMES = ("onnxruntime", "openvino")
# The thresholds that a model takes beside the image, in this order; the last only if its network has a classifier.
THRESHOLDS = {
    "threshold": np.float32,
    "removal_threshold": np.int64,
    "top_threshold": np.float32,
    "top_area": np.int64,
    "classifier_threshold": np.float32,
}
MISSING = "{name} is not installed: pip install 'jaxpneumo[export]'."


@dataclass(frozen=True)
class Session:
    """A model that is ready to run.

    Attributes:
      metadata: what the file says of itself, name -> text.
      run: (name -> array of all inputs, names of outputs) -> these outputs.
    """

    metadata: Mapping[str, str]
    run: Callable[[Mapping[str, np.ndarray], Sequence[str]], list[np.ndarray]]


def threshold_inputs(settings: Predict, classifier: bool) -> dict[str, np.ndarray]:
    """The thresholds of a prediction as a model takes them; 0 where the settings have none."""
    names = [name for name in THRESHOLDS if classifier or name != "classifier_threshold"]
    return {name: np.array(getattr(settings, name) or 0, THRESHOLDS[name]) for name in names}


def open_session(path: Path, runtime: str = RUNTIMES[0], batch: int | None = None) -> Session:
    """Loads a model and compiles it for the CPU, in float32.

    Args:
      path: an ONNX file.
      runtime: one of RUNTIMES.
      batch: it will only see so many images at a time, of the network's size: OpenVINO compiles for these alone. None:
        images of any number and size.

    Raises:
      InputError: there is no such file, it is no ONNX model, or the runtime is not installed.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file. `jaxpneumo export --format onnx --output FILE` of a run makes one.")
    return {"onnxruntime": _onnxruntime, "openvino": _openvino}[runtime](path, batch)


def _onnxruntime(path: Path, batch: int | None) -> Session:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(MISSING.format(name="ONNX Runtime")) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    options.log_severity_level = 3  # errors, which are raised as well
    if batch:
        options.add_free_dimension_override_by_name("images", batch)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        raise _unusable(path, error) from error

    def run(inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        return cast(list[np.ndarray], session.run(outputs, dict(inputs)))

    return Session(session.get_modelmeta().custom_metadata_map, run)


def _openvino(path: Path, batch: int | None) -> Session:
    try:
        with _without_telemetry():
            import openvino
    except ImportError as error:
        raise InputError(MISSING.format(name="OpenVINO")) from error
    core = openvino.Core()
    # By itself it would compute in bfloat16 on processors that have it.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cores()}
    try:
        # The bytes and no path, as a name ending tells it the format.
        model = core.read_model(path.read_bytes())
        metadata = model.get_rt_info("framework").value if model.has_rt_info("framework") else {}
        if batch and metadata.get("size", "").isdecimal():
            model.reshape({"image": [batch, *[int(metadata["size"])] * 2]})
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise _unusable(path, error) from error

    def run(inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        found = compiled(dict(inputs))
        return [found[name] for name in outputs]

    return Session(metadata, run)


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Keeps OpenVINO from its telemetry: importing it would send an event and leave a file in the home folder."""
    name, before = "openvino_telemetry", dict(sys.modules)
    sys.modules[name] = None  # pyright: ignore[reportArgumentType]  # as Python has it for what must not be imported
    try:
        yield
    finally:
        del sys.modules[name]
        if name in before:
            sys.modules[name] = before[name]


def _unusable(path: Path, error: Exception) -> InputError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return InputError(f"{path} cannot be used as an ONNX model: {lines[-1][:200].rstrip('.')}. Export it again.")
