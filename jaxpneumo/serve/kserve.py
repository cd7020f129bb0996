"""The Open Inference Protocol (KServe v2) over HTTP: tensors in, tensors out, as JSON or with binary data behind it.

The one input is "image", UINT8 (height, width), with white bones. The outputs are those of OUTPUTS, at the image's own
size. In the binary form a JSON header of `Inference-Header-Content-Length` bytes comes first, and then the data of the
tensors one after the other, little endian (the protocol's extension for binary tensors).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpneumo.predict.finding import Finding
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.ranges import as_typed
from jaxpneumo.serve.answers import native

INPUT = "image"
# Datatype and shape
OUTPUTS = {
    "mask": ("UINT8", (-1, -1)),
    "probability": ("FP32", (-1, -1)),
    "score": ("FP32", (1,)),
    "area": ("INT64", (1,)),
}
TYPES = {"UINT8": "|u1", "FP32": "<f4", "INT64": "<i8"}
LENGTH = "Inference-Header-Content-Length"
MOST_DIGITS = 18  # of that; Python refuses to read thousands of them


def server_metadata(version: str) -> dict[str, Any]:
    """The server's name, version and extensions."""
    return {"name": "jaxpneumo", "version": version, "extensions": ["binary_tensor_data"]}


def model_metadata(name: str, version: str) -> dict[str, Any]:
    """The model's name, version and tensors."""
    outputs = [{"name": output, "datatype": kind, "shape": list(shape)} for output, (kind, shape) in OUTPUTS.items()]
    inputs = [{"name": INPUT, "datatype": "UINT8", "shape": [-1, -1]}]
    return {"name": name, "versions": [version], "platform": "jax", "inputs": inputs, "outputs": outputs}


@dataclass(frozen=True)
class InferRequest:
    """What a request asks for.

    Attributes:
      image: uint8 (H, W).
      outputs: the names of the outputs, each with whether it is wanted as binary data.
      id: that the answer repeats; None: it has none.
    """

    image: np.ndarray
    outputs: Mapping[str, bool]
    id: str | None


def read_request(body: bytes, length: str | None) -> InferRequest:
    """Reads the body of a request; `length` is its `Inference-Header-Content-Length`, None: the body is JSON alone.

    Raises:
      InputError: the request does not follow the protocol, or the image is no UINT8 (height, width).
    """
    readable = length is not None and length.isdecimal() and len(length) <= MOST_DIGITS
    size = len(body) if length is None else int(length) if readable else -1
    if not 0 <= size <= len(body):
        raise InputError(
            f"{LENGTH} is {as_typed(length or '')}, and the body has {len(body)} bytes. Give the bytes of the JSON "
            "header."
        )
    try:
        request = json.loads(body[:size])
        (tensor,) = request["inputs"]
        name, kind, shape = tensor["name"], tensor["datatype"], tensor["shape"]
        of_binary = (tensor.get("parameters") or {}).get("binary_data_size")
        binary = bool((request.get("parameters") or {}).get("binary_data_output"))
        wanted: list[Any] = request.get("outputs") or [{"name": output} for output in OUTPUTS]
        outputs = {one["name"]: bool((one.get("parameters") or {}).get("binary_data", binary)) for one in wanted}
        number = request.get("id")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(
            'the request is not understood. Give JSON: {"inputs": [{"name": "image", "datatype": "UINT8", "shape": '
            '[height, width], "data": [...]}]}.'
        ) from None
    if (name, kind) != (INPUT, "UINT8") or not _is_shape(shape):
        raise InputError(
            f"the input must be {INPUT}, UINT8, of a shape [height, width]; it is {name}, {kind}, {shape}."
        )
    if unknown := sorted(outputs.keys() - OUTPUTS.keys(), key=str):
        raise InputError(f"there is no output {unknown[0]}; there are {', '.join(OUTPUTS)}.")
    image = _numbers(tensor.get("data")) if of_binary is None else np.frombuffer(body[size:], np.uint8)
    if image.ndim > 1 and image.shape != tuple(shape):
        raise InputError(f"the shape {shape} does not fit the data, which are nested as {list(image.shape)}.")
    if image.size != shape[0] * shape[1] or of_binary not in (None, image.size):
        raise InputError(f"the shape {shape} does not fit the {image.size} values of the image.")
    return InferRequest(image.reshape(shape), outputs, None if number is None else str(number))


def write_answer(finding: Finding, request: InferRequest, name: str, version: str) -> tuple[bytes, int | None]:
    """The body of the answer to a request, and the length of its JSON header; None: it is JSON alone."""
    arrays = {"mask": finding.mask, "probability": native(finding), "score": [finding.score], "area": [finding.area]}
    outputs, data = [], []
    for output, binary in request.outputs.items():
        kind, _ = OUTPUTS[output]
        array = np.ascontiguousarray(arrays[output], TYPES[kind])
        tensor: dict[str, Any] = {"name": output, "datatype": kind, "shape": list(array.shape)}
        if binary:
            data.append(array.tobytes())
            outputs.append(tensor | {"parameters": {"binary_data_size": array.nbytes}})
        else:
            outputs.append(tensor | {"data": array.ravel().tolist()})
    answer = {"model_name": name, "model_version": version, "outputs": outputs}
    head = json.dumps(answer if request.id is None else answer | {"id": request.id}).encode()
    return b"".join([head, *data]), len(head) if data else None


def _is_shape(shape: Any) -> bool:
    sides = shape if isinstance(shape, list) and len(shape) == 2 else [None]
    return all(type(side) is int and side > 0 for side in sides)


def _numbers(data: Any) -> np.ndarray:
    """JSON's numbers, flat or nested by rows, as uint8."""
    try:
        array = np.array(data if isinstance(data, list) else [])
    except ValueError:  # rows of several lengths
        array = np.array([])
    if array.dtype.kind != "i" or array.min() < 0 or array.max() > 255:
        raise InputError("the data of the image must be whole numbers from 0 to 255.")
    return array.astype(np.uint8)
