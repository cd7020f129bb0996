"""Roofline model: the minimum time of a program on a device, from its work and the device's rates.

There are two lower bounds: operations of the program / rate of a large matrix product, and bytes of the program / rate
of a large copy. The larger one is the floor: no program for the same work runs much faster (Williams et al. 2009). Both
rates are measured on the same device and in the same process as the program.

The work is counted in two ways. XLA's analysis of the compiled program counts operations and bytes after fusion. Some
backends report it only in part: the work of libraries is missing, and bytes count even if a cache can keep them. The
second count does not depend on the compiler. It covers only convolutions and matrix products, and uses their shapes. It
omits multiplications with padding and with the holes of dilated arrays, and counts each operand and result once.
"""

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpneumo.bench.measure import seconds_per_call


@dataclass(frozen=True)
class Rates:
    """Rates of a device per second: {type: operations} of a matrix product, and bytes of a copy (read and written)."""

    operations: dict[str, float]
    bytes: float

    def best(self, dtype: str) -> float:
        """Best rate of operations per second for a computation in `dtype`, which can also run in a wider type."""
        return max(self.operations.values()) if dtype == "bfloat16" else self.operations["float32"]


@dataclass(frozen=True)
class Work:
    """Operations (a multiplication and an addition count as two) and bytes of a program; None if unknown."""

    operations: float | None
    bytes: float | None


def device_rates(side: int | None = None, elements: int | None = None, repeats: int = 5) -> Rates:
    """Measures the rates of the first device: matrix products in float32 and bfloat16, and adding 1 to a large array.

    Args:
      side: side of the square random matrices; None uses 8192 on an accelerator, 2048 on a CPU.
      elements: number of float32 elements of the array; None uses 1 GiB on an accelerator, 256 MiB on a CPU.
      repeats: repeats of each measurement; the results are medians.
    """
    accelerator = jax.default_backend() != "cpu"
    side = side or (8192 if accelerator else 2048)
    elements = elements or (2**28 if accelerator else 2**26)
    product = jax.jit(jnp.dot)
    operations = {}
    for dtype in ("float32", "bfloat16"):
        left, right = (jax.random.normal(jax.random.key(seed), (side, side), dtype) for seed in (0, 1))
        seconds = statistics.median(seconds_per_call(lambda a=left, b=right: product(a, b), repeats))
        operations[dtype] = 2 * side**3 / seconds
    copy = jax.jit(lambda x: x + 1)
    array = jnp.arange(elements, dtype=jnp.float32)
    seconds = statistics.median(seconds_per_call(lambda: copy(array), repeats))
    return Rates(operations, 2 * array.nbytes / seconds)


def compiled_work(compiled: Any) -> Work:
    """The work of a compiled program according to XLA's analysis."""
    analysis = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list | tuple) and analysis else analysis
    found = analysis if isinstance(analysis, dict) else {}

    def known(name: str) -> float | None:
        value = found.get(name)
        return float(value) if value is not None and value > 0 else None

    return Work(known("flops"), known("bytes accessed"))


def counted_work(function: Callable, *arguments: Any) -> Work:
    """Counts the work of the convolutions and matrix products in a function. Arguments are arrays or their shapes."""
    operations, moved = 0, 0
    for equation, times in _equations(jax.make_jaxpr(function)(*arguments).jaxpr, 1):
        count = _OPERATIONS.get(equation.primitive.name)
        if count:
            operations += times * count(equation)
            variables = (*equation.invars, *equation.outvars)
            moved += times * sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in variables)
    return Work(float(operations), float(moved))


def roofline(seconds: float, work: Work, rates: Rates, dtype: str, devices: int = 1) -> dict[str, Any]:
    """Compares a measured time with its floor.

    Args:
      seconds: measured time.
      work: operations and bytes of the program.
      rates: rates of one device.
      dtype: type of the computation.
      devices: number of devices that share the work.

    Returns:
      {"operations", "bytes", "floor_seconds", "bound" ("arithmetic" or "memory"), "share" (floor / measured time)}. The
      last three are None if neither operations nor bytes are known.
    """
    floors = {}
    if work.operations:
        floors["arithmetic"] = work.operations / rates.best(dtype) / devices
    if work.bytes:
        floors["memory"] = work.bytes / rates.bytes / devices
    bound = max(floors, key=lambda name: floors[name], default=None)
    return {
        "operations": work.operations,
        "bytes": work.bytes,
        "floor_seconds": floors[bound] if bound else None,
        "bound": bound,
        "share": floors[bound] / seconds if bound else None,
    }


def describe(name: str, line: dict[str, Any]) -> str:
    """Formats the result of `roofline` as one line."""
    if line["share"] is None:
        return f"  roofline, {name:8}  the backend does not tell"
    operations, moved = ((line[key] or 0) / 1e9 for key in ("operations", "bytes"))
    return (
        f"  roofline, {name:8} {line['share']:7.1%} of what {operations:.1f} GFLOP and {moved:.2f} GB allow "
        f"({line['floor_seconds'] * 1e3:.2f} ms, {line['bound']})"
    )


def _equations(jaxpr: Any, times: int) -> Iterator[tuple[Any, int]]:
    """Yields all equations, including those of inner functions, and how often each runs (a `while` counts once)."""
    for equation in jaxpr.eqns:
        yield equation, times
        repeated = times * equation.params["length"] if equation.primitive.name == "scan" else times
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner, repeated)


def _product_operations(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)


def _convolution_operations(equation: Any) -> int:
    """Counts the operations of a convolution, two per multiplication.

    The multiplications are examples x channels x pairs of output and kernel positions that meet a real input pixel.
    """
    parameters = equation.params
    numbers = parameters["dimension_numbers"]
    left, right, result = (v.aval.shape for v in (*equation.invars, *equation.outvars))
    pairs = 1
    for axis, (i, k, o) in enumerate(
        zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    ):
        hole = parameters["lhs_dilation"][axis]
        places = (
            np.arange(result[o])[:, None] * parameters["window_strides"][axis]
            + np.arange(right[k])[None] * parameters["rhs_dilation"][axis]
            - parameters["padding"][axis][0]
        )
        pairs *= int(((places >= 0) & (places <= (left[i] - 1) * hole) & (places % hole == 0)).sum())
    channels = right[numbers.rhs_spec[1]]
    return 2 * pairs * channels * result[numbers.out_spec[0]] * result[numbers.out_spec[1]]


_OPERATIONS = {"dot_general": _product_operations, "conv_general_dilated": _convolution_operations}
