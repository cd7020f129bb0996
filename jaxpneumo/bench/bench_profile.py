"""`jaxpneumo bench profile`: where the device's time goes in a training step or a prediction, layer by layer.

JAX's profiler records every kernel with the name of its instruction in the compiled program. The program's text says
which of the network's modules an instruction belongs to, and whether it computes a gradient.
"""

import os
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxpneumo.bench.bench_predict import prepare_predict
from jaxpneumo.bench.bench_step import prepare_step
from jaxpneumo.bench.measure import finish, network
from jaxpneumo.bench.options import PARSERS
from jaxpneumo.process.errors import DONE, InputError

NO_GRAPHS = "--xla_gpu_enable_command_buffer="
# What a kernel does, by the words in the name of its instruction; the first that fits counts.
_KINDS = (
    ("convolution", re.compile(r"conv(?!ert)|cudnn|onednn")),
    ("reduction", re.compile(r"reduce|select_and_scatter")),
    ("layout", re.compile(r"transpose|copy|bitcast|concatenate|pad")),
)
# A method's name may stand behind that of the network.
_NETWORK = re.compile(r"UNet(?:\.\w+)?\)*/")
_INSTRUCTION = re.compile(r'%?([\w.-]+) = .*?metadata=\{op_name="([^"]*)"')


def kernel_times(once: Callable[[], Any], calls: int) -> dict[str, float]:
    """Runs `once` several times under the profiler: {instruction: seconds in each call}.

    On a CPU the times of the cores are summed.
    """
    jax.block_until_ready(once())
    with tempfile.TemporaryDirectory(prefix="jaxpneumo-profile-") as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                result = once()
            jax.block_until_ready(result)
        files = list(Path(folder).rglob("*.xplane.pb"))
        found: dict[str, float] = defaultdict(float)
        for file in files:
            for name, nanoseconds in _kernels(jax.profiler.ProfileData.from_file(str(file))):
                found[name] += nanoseconds / 1e9 / calls
    return found


def _kernels(profile: Any) -> Iterator[tuple[str, float]]:
    planes = list(profile.planes)
    # Beside the devices' own planes, the host's hold the same names again.
    devices = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    for plane in devices or planes:
        for line in plane.lines:
            if devices and not line.name.startswith("Stream"):
                continue
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if name or devices:
                    yield str(name or event.name), event.duration_ns


def modules(program: str) -> dict[str, tuple[str, str]]:
    """What a compiled program's text says of its instructions: {name: (module, "forward", "backward" or "")}.

    The module is that of the network, such as "decoder/block4"; outside of the network it is "other".
    """
    found = {}
    for line in program.splitlines():
        if match := _INSTRUCTION.search(line):
            name, path = match.groups()
            inside = _NETWORK.split(path)
            way = "" if len(inside) == 1 else "backward" if "transpose(jvp(UNet" in path else "forward"
            # The last part is the operation, or its end is cut off.
            module = "/".join(inside[-1].strip(")/").split("/")[:-1][:2]) or "network"
            found[name] = module if way else "other", way
    return found


def kind_of(instruction: str) -> str:
    """By an instruction's name: "convolution", "reduction", "layout" or "element-wise"."""
    return next((name for name, words in _KINDS if words.search(instruction)), "element-wise")


def table(times: dict[str, float], program: str) -> list[dict[str, Any]]:
    """Rows {"module", "way", "kind", "seconds", "kernels"}, the longest first."""
    where = modules(program)
    seconds: dict[tuple[str, str, str], float] = defaultdict(float)
    kernels: Counter[tuple[str, str, str]] = Counter()
    for name, taken in times.items():
        key = (*where.get(name, ("other", "")), kind_of(name))
        seconds[key] += taken
        kernels[key] += 1
    names = ("module", "way", "kind")
    return [
        {**dict(zip(names, key, strict=True)), "seconds": taken, "kernels": kernels[key]}
        for key, taken in sorted(seconds.items(), key=lambda item: -item[1])
    ]


def main(argv: list[str]) -> int:
    """Runs `jaxpneumo bench profile`."""
    options = PARSERS["profile"]().parse_args(argv)
    model = network(options, training=options.what == "step")
    # A GPU runs many kernels as one graph, and the profiler does not say which.
    flags = os.environ.get("XLA_FLAGS", "")
    if jax.default_backend() == "gpu" and NO_GRAPHS not in flags:
        raise InputError(f"a profile needs each kernel by itself: start again with XLA_FLAGS={NO_GRAPHS}")
    if options.what == "step":
        step = prepare_step(model, options.size, options.batch)
        once, compiled, steps = step.once, step.compiled, step.steps
    else:
        prediction = prepare_predict(model, options.size, options.batch)
        once, compiled, steps = prediction.once, prediction.compiled, 1
    times = {name: taken / steps for name, taken in kernel_times(once, options.repeats).items()}
    if not times:
        raise InputError("the profiler recorded no kernel on this device.")
    rows, whole = table(times, compiled.as_text()), sum(times.values())
    kinds: dict[str, float] = defaultdict(float)
    for row in rows:
        kinds[row["kind"]] += row["seconds"]
    result = {"what": options.what, "size": options.size, "batch": options.batch, "seconds": whole}
    lines = [
        f"{options.what} at {options.size}, batch {options.batch}, {options.dtype}: {whole * 1e3:.2f} ms",
        "  " + ", ".join(f"{name} {taken * 1e3:.2f} ms" for name, taken in kinds.items()),
        f"  {'module':34} {'':9} {'kind':13} {'ms':>8} {'kernels':>8}",
        *(
            f"  {row['module']:34} {row['way']:9} {row['kind']:13} {row['seconds'] * 1e3:8.3f} {row['kernels']:8}"
            for row in rows[: options.rows]
        ),
    ]
    finish({**result, "rows": rows, "instructions": times}, lines, options.output)
    return DONE
