"""`jaxpneumo bench export`: the prediction of an exported ONNX model, in ONNX Runtime or OpenVINO, on the CPU.

The two times are those of `bench_predict`: of the network, from uint8 images to probabilities at its size, and of the
whole prediction, from these images to masks at native size, which NumPy makes. All of it lies in the host's memory.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from jaxpneumo.bench.bench_predict import NATIVE, REMOVAL, THRESHOLD
from jaxpneumo.bench.measure import GIB, finish, peak_bytes, random_batch, rates, seconds_per_call
from jaxpneumo.bench.options import PARSERS
from jaxpneumo.export.description import USE
from jaxpneumo.export.onnx_model import to_onnx
from jaxpneumo.predict.infer import compile_network
from jaxpneumo.predict.onnx_predictor import native_mask
from jaxpneumo.predict.onnx_session import Session, open_session, threshold_inputs
from jaxpneumo.process.errors import DONE
from jaxpneumo.run.config import Model, Predict
from jaxpneumo.run.network import make_model
from jaxpneumo.run.sharding import make_local_mesh
from jaxpneumo.run.state import initialise


def bench_export(
    model: Model, settings: Predict, runtime: str, repeats: int = 5, calls: int | None = None, native: int = NATIVE
) -> dict[str, Any]:
    """Times an exported model with random weights on one batch of noise.

    Args:
      model: what the network is.
      settings: size, batch, views and thresholds.
      runtime: one of `onnx_session.RUNTIMES`.
      repeats, calls: see `seconds_per_call`.
      native: height and width of the masks in the whole prediction.

    Returns:
      {"size", "batch", "dtype", "encoder", "mirror", "runtime", "images_per_second", "seconds", "repeats" (of the
      network), "whole": {"native" and the same three values of the whole prediction}, "peak_bytes"}.
    """
    session, batch = _session(model, settings, runtime), settings.batch_size
    inputs = {"image": random_batch(settings.size, batch)["image"], **threshold_inputs(settings, model.classifier)}

    def network() -> Any:
        session.run(inputs, ["probability"])

    def whole() -> None:
        for probability in session.run(inputs, ["probability"])[0]:
            native_mask(probability, (native, native), settings)

    return {
        "size": settings.size,
        "batch": batch,
        "dtype": "float32",
        "encoder": model.encoder,
        "mirror": bool(settings.tta),
        "runtime": runtime,
        **rates(batch, seconds_per_call(network, repeats, calls)),
        "whole": {"native": native, **rates(batch, seconds_per_call(whole, repeats, calls))},
        "peak_bytes": peak_bytes(),
    }


def _session(model: Model, settings: Predict, runtime: str) -> Session:
    network = compile_network(
        make_model(model, training=False), initialise(make_model(model), 0), settings, make_local_mesh(1)
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        file.write_bytes(to_onnx(model, network.variables, settings, {"note": USE, "size": str(settings.size)}))
        return open_session(file, runtime, settings.batch_size)


def _model(options: argparse.Namespace) -> Model:
    return Model(
        encoder=options.encoder,
        dtype="float32",
        input_convolution=False,
        momentum=None,
        pretrained="",
        depths=options.depths,
        width=options.width,
        remat=False,
    )


def main(argv: list[str]) -> int:
    """Runs `jaxpneumo bench export`."""
    options = PARSERS["export"]().parse_args(argv)
    settings = Predict(options.size, options.batch, not options.no_tta, THRESHOLD, REMOVAL)
    result = bench_export(_model(options), settings, options.runtime, options.repeats, options.calls)
    whole = result["whole"]
    finish(
        result,
        [
            f"prediction by {options.runtime}, {options.encoder} at {options.size}, batch {options.batch}, float32, "
            f"{'without' if options.no_tta else 'with'} flip TTA: "
            f"{result['images_per_second']:.2f} images/s, {result['seconds'] * 1e3:.1f} ms a batch",
            f"  host to host at {NATIVE}x{NATIVE}: {whole['images_per_second']:.2f} images/s, "
            f"{whole['seconds'] * 1e3:.1f} ms a batch",
            f"  peak memory {result['peak_bytes']['process'] / GIB:.2f} GiB",
        ],
        options.output,
    )
    return DONE
