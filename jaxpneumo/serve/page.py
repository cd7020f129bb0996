"""`jaxpneumo page`: a page in the browser that outlines the radiographs dropped on it, and a server for programs."""

import argparse
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from jaxpneumo.predict import gate, saved_thresholds, workdir_options
from jaxpneumo.predict.reading import Reading
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.errors import DONE, InputError, Stopped
from jaxpneumo.process.machine import cores
from jaxpneumo.process.ranges import BATCH, whole
from jaxpneumo.serve.guard import LOOPBACK, is_loopback

if TYPE_CHECKING:  # what needs JAX is imported where it is used, and so are optional libraries
    import uvicorn
    from starlette.types import ASGIApp

    from jaxpneumo.predict.infer import Predictor

BATCH_SIZE = 4  # on a GPU; a browser has six uploads on the way. On a CPU batches gain little.
DECODERS = 4  # processes that read files, at most
CONNECTIONS = 64  # at once; each may hold an upload in memory
logger = logging.getLogger(__name__)
PORT = whole(0, 65535)

HELP = """\
Serves a page for looking at single radiographs. Drop DICOM, PNG or JPEG files, or a folder, on it. It shows outline,
area, score and a heat map of the probability, and has a slider for the threshold. Not a medical device.

It prints the address to open and runs until Ctrl-C. Only programs of this machine can reach it, unless --host names
another address. What is dropped on the page is read in memory and forgotten with the answer; nothing is logged. Only
while a DICOM result is made does the file lie in a temporary folder.

Programs can ask the same server with the Open Inference Protocol (KServe v2); docs/usage.md has an example.

The masks are those of `jaxpneumo predict`. Settings and thresholds are the run's; several runs, gate and thresholds are
given as to `predict`.

examples:
  jaxpneumo page --workdir runs/quickstart
  jaxpneumo page --workdir runs/exp5 --port 8000
  jaxpneumo page --workdir runs/exp5_fold0,runs/exp5_fold1 --thresholds folds
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see HELP."""
    parser = Parser(prog="jaxpneumo page", description=HELP)
    workdir_options.add_arguments(parser)
    add = parser.add_argument
    add("--thresholds", metavar="NAME", help="use the thresholds that `jaxpneumo thresholds` saved under this name")
    gate.add_arguments(parser)
    add("--host", default=LOOPBACK[1], help=f"address to listen at (default: {LOOPBACK[1]}, for this machine alone)")
    add("--port", type=PORT, default=0, help="port to listen at (default: 0, a free one)")
    add(
        "--batch-size",
        type=BATCH,
        help=f"radiographs per call of the network, if several wait (default: {BATCH_SIZE} on a GPU, 1 on a CPU)",
    )
    add("--any-image", action="store_true", help="also predict images that are not frontal chest radiographs")
    options = parser.parse_args(arguments)

    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise InputError(f"the page needs {' and '.join(missing)}: pip install 'jaxpneumo[serve]'")
    workdirs = workdir_options.read_workdirs(options.workdir)
    listening = listen(options.host, options.port)
    predictor = _load(options, workdirs)
    from jaxpneumo.serve.decoding import Decoders
    from jaxpneumo.serve.engine import Engine
    from jaxpneumo.serve.site import make_app

    reading = Reading(Path(), predictor.settings.size, any_image=options.any_image)
    name = "+".join(workdir.name for workdir in workdirs)
    app = make_app(Engine(predictor), Decoders(min(cores(), DECODERS), reading), name, options.host)
    if not is_loopback(options.host):
        logger.warning(
            "Everybody who can reach %s can use this page and send files to it, without a password, and what is sent "
            "can be read on the way. Leave --host out to serve this machine alone.",
            options.host,
        )
    print(
        f"Open {address(listening)} in a browser. Ctrl-C ends it. Research use only; not a medical device.", flush=True
    )
    # uvicorn ends at SIGINT and SIGTERM and raises them again. Both are how a page ends.
    with listening, suppress(KeyboardInterrupt, Stopped):
        make_server(app).run([listening])
    return DONE


def make_server(app: "ASGIApp") -> "uvicorn.Server":
    """The HTTP server of an application: it logs failures and nothing of the requests."""
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=5,
        )
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections. Raises InputError if there is no such address or the port is taken."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(CONNECTIONS)
    except OSError as error:
        raise InputError(
            f"nothing can listen at --host {host} --port {port} ({error.strerror}). Leave out --port for a free one, "
            "and --host for this machine alone."
        ) from error
    return listening


def address(listening: socket.socket) -> str:
    """The address for a browser."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _load(options: argparse.Namespace, workdirs: list[Path]) -> "Predictor":
    """The runs on one device, with the settings of the options."""
    import jax

    from jaxpneumo.predict.ensemble import load_ensemble

    weights = workdir_options.read_weights(options.weights, len(workdirs))
    predictor = load_ensemble(workdirs, weights, 1)
    settings = predictor.settings
    if options.thresholds:
        settings = saved_thresholds.use(workdirs[0], options.thresholds, settings)
    deciding = gate.load_gate(options.gate, options.gate_thresholds, settings)
    usual = 1 if jax.default_backend() == "cpu" else BATCH_SIZE
    settings = replace(settings, batch_size=options.batch_size or usual)
    return replace(predictor, settings=settings, gate=deciding)
