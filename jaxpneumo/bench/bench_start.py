"""`jaxpneumo bench start`: from the start of a process to its first finished training step.

The first start has an empty compilation cache; the second uses the cache that the first has filled. Each start is a
new process. The time includes interpreter, imports, device, fresh weights, compilation and the step itself.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.errors import DONE, TrainingError
from jaxpneumo.process.runtime import prepare_process

# No other imports here: the measured processes run this module, and imports would count.

OPTIONS = ("encoder", "dtype", "depths", "width", "size", "batch")


def bench_start(arguments: list[str], repeats: int = 5, scratch: Path | None = None) -> dict[str, Any]:
    """Times starts: in each repeat, one with an empty cache and one with a filled cache.

    Args:
      arguments: options of `options.add_network`.
      repeats: number of repeats.
      scratch: folder for the caches, removed at the end; None uses the system's temporary folder.

    Returns:
      {"cold", "warm": {"seconds" (median), "repeats", "imports", "compile" (medians; parts of these seconds)},
      "cache_bytes"}.

    Raises:
      TrainingError: a start failed. Its own message was printed before.
    """
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(repeats):
        folder = Path(tempfile.mkdtemp(prefix="jaxpneumo-bench-", dir=scratch))
        try:
            for kind in found:
                found[kind].append(_start(arguments, folder))
            cache_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def summary(starts: list[dict[str, float]]) -> dict[str, Any]:
        medians = {key: statistics.median(start[key] for start in starts) for key in starts[0]}
        return {**medians, "repeats": [start["seconds"] for start in starts]}

    return {**{kind: summary(starts) for kind, starts in found.items()}, "cache_bytes": cache_bytes}


def _start(arguments: list[str], cache: Path) -> dict[str, float]:
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "jaxpneumo.bench.bench_start", *arguments]
    # Each start sets up its own environment, as it does for a user.
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | settings
    # The monotonic clock is the same in both processes.
    start = time.monotonic()
    process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if process.returncode:
        raise TrainingError(f"the start that was to be measured failed with exit code {process.returncode}; see above.")
    moments = json.loads(process.stdout.splitlines()[-1])
    return {
        "seconds": moments["step"] - start,
        "imports": moments["imported"] - start,
        "compile": moments["compiled"] - moments["imported"],
    }


def _first_step(argv: list[str]) -> dict[str, float]:
    """Runs the first step in a measured process. Returns the times after imports, compilation and the step."""
    import jax
    import jax.numpy as jnp

    from jaxpneumo.bench import bench_step, measure
    from jaxpneumo.bench.options import add_network
    from jaxpneumo.run.sharding import make_mesh, place, replicated, split

    parser = Parser()
    add_network(parser)
    options = parser.parse_args(argv)
    model = measure.network(options)
    moments = {"imported": time.monotonic()}
    train_step, optimizer = bench_step.jitted_step(model)
    state = bench_step.fresh_state(model, optimizer)
    batch = place(measure.random_batch(options.size, options.batch), split(make_mesh()))
    rate = jax.device_put(jnp.float32(bench_step.LEARNING_RATE), replicated(make_mesh()))
    compiled = train_step.lower(state, batch, rate).compile()
    moments["compiled"] = time.monotonic()
    jax.block_until_ready(compiled(state, batch, rate))
    return {**moments, "step": time.monotonic()}


def main(argv: list[str]) -> int:
    """Runs `jaxpneumo bench start`."""
    from jaxpneumo.bench import measure
    from jaxpneumo.bench.options import PARSERS

    options = PARSERS["start"]().parse_args(argv)
    measure.network(options)
    settings = {name: getattr(options, name) for name in OPTIONS}
    settings["depths"] = ",".join(map(str, options.depths))
    result = bench_start([f"--{name}={value}" for name, value in settings.items()], options.repeats)
    lines = [f"process start to first finished step, {options.encoder} at {options.size}, batch {options.batch}"]
    for kind in ("cold", "warm"):
        found = result[kind]
        lines.append(
            f"  {kind} cache {found['seconds']:7.1f} s: imports {found['imports']:.1f} s, weights and compilation "
            f"{found['compile']:.1f} s"
        )
    measure.finish({**settings, **result}, lines, options.output)
    return DONE


if __name__ == "__main__":
    prepare_process()
    print(json.dumps(_first_step(sys.argv[1:])))
