"""`jaxpneumo listen`: a DICOM node that predicts the chest radiographs it is sent, and sends the results on.

This process talks to the network and keeps the folders (`spool.py`); a second one has the model (`model_process.py`).
One thread gives images to the model, one for each destination sends results, and one for each caller takes radiographs.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from jaxpneumo.predict.dicom_results import KINDS, SR, check_installed
from jaxpneumo.process import places, run_report
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.errors import InputError, Stopped
from jaxpneumo.process.machine import resident_memory
from jaxpneumo.process.ranges import COUNT, SECONDS, number, whole
from jaxpneumo.process.stop import sigterm_deferred
from jaxpneumo.serve import chosen_model
from jaxpneumo.serve.events import Events
from jaxpneumo.serve.health import LOOPBACK, Labels, answering, metrics_text
from jaxpneumo.serve.look import make_look
from jaxpneumo.serve.model_process import Look, LostError, ModelProcess
from jaxpneumo.serve.optional import library
from jaxpneumo.serve.partners import Destination, Partners, read_partners, title_problem
from jaxpneumo.serve.predicting import predict_waiting
from jaxpneumo.serve.sender import Send, deliver_waiting
from jaxpneumo.serve.spool import ASIDE, DEAD, INCOMING, OUTGOING, WORKING, Limits, Spool

PORT = whole(0, 65535)
GIB = number(0, 1e6)
HOURS = number(0, 1e5, above_low=True)

HELP = """\
Takes chest radiographs by DICOM, outlines pneumothorax, and sends the results on. Not a medical device.

An archive sends radiographs by C-STORE. Results go to the destinations that --partners names, by C-STORE or STOW-RS.
--partners is a small TOML file, which also says who may send; docs/hospital.md has examples and explains each step.

Each image is a folder in --spool, and its state is the folder that it lies in:
  incoming   it is safe on the disk and waits          aside        it was not predicted; record.json says why
  working    the model looks at it                     dead-letter  results that a destination did not take
  outgoing   its results wait for a destination        log          one file of JSON lines a day
  done       all results were delivered

It runs until SIGTERM (exit code 75). After that, or after a kill, give the same command again: nothing is lost, and
nothing is predicted or sent twice.

examples:
  jaxpneumo listen --workdir runs/exp5 --spool spool --partners partners.toml
  jaxpneumo listen --workdir runs/exp5 --spool spool --partners partners.toml --title AI --host 10.0.0.7 --port 104
"""
HELPS = {
    "jaxpneumo_events_total": "Lines of the log by event since the start.",
    "jaxpneumo_images": "Images in each folder of the spool but done.",
    "jaxpneumo_oldest_waiting_seconds": "Age of the image that waits longest for the model.",
    "jaxpneumo_free_bytes": "Free space on the disk of the spool.",
    "jaxpneumo_takes_images": "1 if images are accepted, 0 if they are answered with 0xA700.",
    "jaxpneumo_model_ready": "1 if the process of the model runs.",
    "jaxpneumo_resident_bytes": "Memory of the two processes.",
}


@dataclass(frozen=True)
class Settings:
    """How the listener runs.

    Attributes:
      spool: folder for everything that it keeps.
      title: its AE title, as the called and as the calling node.
      host, port: it binds; port 0 is any free one.
      health_port: of health and metrics on the loopback interface.
      limits: from where on it takes nothing more.
      seconds: that the model may take for one image.
      give_up: seconds of failures after which a result becomes a dead letter.
    """

    spool: Path
    title: str
    host: str
    port: int
    health_port: int
    limits: Limits
    seconds: float
    give_up: float


def serve(settings: Settings, partners: Partners, make: Callable[..., Look], arguments: tuple) -> NoReturn:
    """Runs the listener until SIGTERM. It then takes nothing more, finishes the image in work, and ends.

    Args:
      settings: how it runs.
      partners: who may send, and where results go.
      make, arguments: of the `ModelProcess`.

    Raises:
      Stopped: at its end.
      InputError: another listener has the folder, the model cannot be made, results wait for an unknown destination,
        or an address cannot be bound.
    """
    spool, senders = Spool(settings.spool), {each: _send_to(each, settings.title) for each in partners.destinations}
    library("dicom")  # whether it is there
    held = spool.open()
    events = Events(settings.spool / "log")
    model = ModelProcess(make, arguments, settings.spool, settings.seconds)
    try:
        _check_destinations(spool, partners.destinations)
        with sigterm_deferred() as asked_to_end:
            try:
                model.start()
            except LostError as error:
                raise InputError(f"the process of the model {error} before it was ready; see above.") from error
            for uid in spool.restore():
                events.note("taken back", uid=uid)
            _run(settings, partners, spool, model, senders, events, asked_to_end)
        raise Stopped
    finally:
        model.stop()
        os.close(held)


def _run(
    settings: Settings,
    partners: Partners,
    spool: Spool,
    model: ModelProcess,
    senders: Mapping[Destination, Send],
    events: Events,
    asked_to_end: Callable[[], bool],
) -> None:
    predicted, sent = threading.Event(), threading.Event()
    wanted = {each.name: each.results for each in partners.destinations}
    address, health = (settings.host, settings.port), partial(_problems, settings.limits, spool, model)
    # Whatever ends, ends in this order: callers, then the image in work, then what can be sent of its results.
    with ThreadPoolExecutor(1 + len(partners.destinations)) as pool, ExitStack() as ends:
        ends.callback(sent.set)
        work = [pool.submit(predict_waiting, spool, model, wanted, events, predicted)]
        ends.callback(_end, predicted, work[0])
        for each, send in senders.items():
            work.append(pool.submit(deliver_waiting, spool, each, send, events, sent, settings.give_up))
        metrics = partial(_metrics, settings.limits, spool, model, events)
        health_port = _bound(ends, answering(settings.health_port, health, metrics), (LOOPBACK, settings.health_port))
        node = library("dicom").listening(spool, partners, settings.limits, events, settings.title, address)
        host, port = _bound(ends, node, address)
        events.note("started", title=settings.title, host=host, port=port, health_port=health_port)
        while not asked_to_end() and not any(each.done() for each in work):
            time.sleep(0.1)
        events.note("ending")
    for each in work:
        each.result()  # raises what ended it


def _end(event: threading.Event, work: Future[None]) -> None:
    event.set()
    wait([work])


def _bound(ends: ExitStack, server: AbstractContextManager[Any], address: tuple[str, int]) -> Any:
    try:
        return ends.enter_context(server)
    except OSError as error:
        host, port = address
        raise InputError(f"{host}:{port} cannot be bound: {error.strerror}. Choose another port or host.") from error


def _send_to(destination: Destination, title: str) -> Send:
    send = partial(library(destination.kind).send, destination)
    return partial(send, title=title) if destination.kind == "dicom" else send


def _check_destinations(spool: Spool, destinations: Sequence[Destination]) -> None:
    if unknown := sorted(spool.destinations() - {each.name for each in destinations}):
        raise InputError(
            f"results in {spool.folder / OUTGOING} wait for {', '.join(unknown)}, which --partners does not name. Name "
            f"it, or move its folders to {spool.folder / DEAD}."
        )


def _problems(limits: Limits, spool: Spool, model: ModelProcess) -> list[str]:
    problem = limits.problem(spool)
    return [*([problem] if problem else []), *([] if model.ready else ["the process of the model does not run"])]


def _metrics(limits: Limits, spool: Spool, model: ModelProcess, events: Events) -> str:
    counts = events.counts().items()
    values: dict[str, dict[Labels, float]] = {
        "jaxpneumo_events_total": {(("event", e), *((("destination", d),) if d else ())): n for (e, d), n in counts},
        "jaxpneumo_images": {(("state", s),): spool.count(s) for s in (INCOMING, WORKING, OUTGOING, ASIDE, DEAD)},
        "jaxpneumo_oldest_waiting_seconds": {(): round(spool.oldest(INCOMING), 3)},
        "jaxpneumo_free_bytes": {(): spool.free()},
        "jaxpneumo_takes_images": {(): int(not limits.problem(spool))},
        "jaxpneumo_model_ready": {(): int(model.ready)},
        "jaxpneumo_resident_bytes": {
            (("process", "network"),): resident_memory(),
            (("process", "model"),): resident_memory(model.pid),
        },
    }
    return metrics_text(values, HELPS)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see HELP. It ends by an exception alone."""
    parser = Parser(prog="jaxpneumo listen", description=HELP)
    chosen_model.add_arguments(parser)
    add = parser.add_argument
    add("--spool", type=places.folder_to_fill, required=True, help="folder for images, results and the log")
    add("--partners", type=places.path, required=True, metavar="FILE", help="who may send, and where results go: TOML")
    add("--title", default="JAXPNEUMO", help="AE title of the listener (default: JAXPNEUMO)")
    add("--host", default=LOOPBACK, help=f"address to bind (default: {LOOPBACK}, this machine alone)")
    add("--port", type=PORT, default=11112, help="port for DICOM (default: 11112; 0: any free one)")
    add("--health-port", type=PORT, default=11180, help=f"for /health and /metrics on {LOOPBACK} (default: 11180)")
    add("--most-waiting", type=COUNT, default=1000, help="images that may wait; then 0xA700 (default: 1000)")
    add("--least-free", type=GIB, default=1.0, help="GiB that must be free on the disk; else 0xA700 (default: 1)")
    add("--seconds", type=SECONDS, default=300.0, help="that the model may take for one image (default: 300)")
    add("--give-up-hours", type=HOURS, default=72.0, help="of failures; then a result is a dead letter (default: 72)")
    options = parser.parse_args(arguments)

    if problem := title_problem(options.title):
        raise InputError(f"--title: {problem}.")
    check_installed()
    run_report.place(options.spool)
    partners = read_partners(options.partners, KINDS)
    wanted = [kind for kind in KINDS if any(kind in each.results for each in partners.destinations)]
    with_reports = [
        kind for kind in wanted if all(kind in each.results for each in partners.destinations if SR in each.results)
    ]
    settings = Settings(
        options.spool,
        options.title,
        options.host,
        options.port,
        options.health_port,
        Limits(options.most_waiting, round(options.least_free * 2**30)),
        options.seconds,
        options.give_up_hours * 3600,
    )
    serve(settings, partners, make_look, (chosen_model.read_options(options), wanted, with_reports))
