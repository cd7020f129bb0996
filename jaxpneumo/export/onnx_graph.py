"""Writes an ONNX model node by node; the only place that knows the package `onnx`.

Maps are NCHW, as in ONNX. Every value has the name of the node that makes it, and every node the name of its module,
so that a viewer shows the network as `model/` has it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from jaxpneumo.process.errors import InputError

OPSET = 18
PRODUCER = "jaxpneumo"

# What a model takes and gives: name -> (NumPy type, shape; a text is the name of an open size)
Values = Mapping[str, tuple[Any, Sequence[int | str]]]


class Graph:
    """The nodes and constants of a model that is being written."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._scopes: list[str] = []
        self._names: set[str] = set()

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Puts a module's name before the names of all that is made in the block."""
        self._scopes.append(name)
        yield
        self._scopes.pop()

    def constant(self, value: Any, name: str = "constant") -> str:
        """The name of a constant; one without axes stays so."""
        name = self._new(name)
        # Not np.ascontiguousarray: it gives an axis to what has none.
        self._constants[name] = _onnx().numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def node(
        self, operator: str, *inputs: str | np.ndarray | None, name: str = "", count: int = 1, **attributes: Any
    ) -> Any:
        """Adds an operation.

        Args:
          operator: its name in ONNX.
          inputs: names of values; an array becomes a constant, None leaves an optional input out.
          name: of the node; the operator's by default.
          count: number of its results.
          attributes: as ONNX has them.

        Returns:
          The name of the result; a tuple of names if there are several.
        """
        name = self._new(name or operator.lower())
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        given = [self.constant(each) if isinstance(each, np.ndarray) else each or "" for each in inputs]
        outputs = [name] if count == 1 else [self._new(f"{name}_{number}") for number in range(count)]
        self._nodes.append(_onnx().helper.make_node(operator, given, outputs, name=name, **attributes))
        return outputs[0] if count == 1 else tuple(outputs)

    def cast(self, x: str | np.ndarray, kind: Any) -> Any:
        """A value as another type of NumPy; an array stays one."""
        if isinstance(x, np.ndarray):
            return x.astype(kind)
        return self.node("Cast", x, to=_onnx().helper.np_dtype_to_tensor_dtype(np.dtype(kind)))

    def serialize(
        self, inputs: Values, outputs: Values, results: Mapping[str, str], metadata: Mapping[str, str], text: str
    ) -> bytes:
        """The model as the bytes of its file, its form checked.

        Args:
          inputs: what the model takes; nodes refer to it by name.
          outputs: what it gives.
          results: output's name -> name of the value that it is.
          metadata: texts that the file holds beside the graph.
          text: what the model is, in a sentence.
        """
        onnx = _onnx()
        nodes = [*self._nodes]
        nodes += [onnx.helper.make_node("Identity", [value], [name], name=name) for name, value in results.items()]
        graph = onnx.helper.make_graph(
            nodes, PRODUCER, _infos(inputs), _infos(outputs), initializer=list(self._constants.values())
        )
        model = onnx.helper.make_model(
            graph, producer_name=PRODUCER, opset_imports=[onnx.helper.make_opsetid("", OPSET)], doc_string=text
        )
        # The oldest form with this operator set: older runtimes read it too.
        model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
        onnx.helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString(deterministic=True)

    def _new(self, name: str) -> str:
        """A name that nothing has yet, behind the names of the modules around it."""
        whole = "/".join([*self._scopes, name])
        number = 0
        while (found := f"{whole}_{number}" if number else whole) in self._names:
            number += 1
        self._names.add(found)
        return found


def _infos(values: Values) -> list[Any]:
    helper = _onnx().helper
    return [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape)
        for name, (kind, shape) in values.items()
    ]


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise InputError("--format onnx needs the package onnx: pip install 'jaxpneumo[export]'.") from error
    return onnx
