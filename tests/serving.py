"""A page's real server around the shared run, on a port of its own, for tests of the server and of the page."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from jaxpneumo.predict.ensemble import load_ensemble
from jaxpneumo.predict.infer import Predictor
from jaxpneumo.predict.reading import Reading

# With these the run outlines something in most of the shared radiographs, and nothing in others.
OUTLINING = {"threshold": 0.3, "removal_threshold": 2048}


def predictor_of(workdir: Path, **settings: Any) -> Predictor:
    """The run on one device, with thresholds that leave outlines."""
    predictor = load_ensemble([workdir], [1.0], 1)
    return replace(predictor, settings=replace(predictor.settings, **OUTLINING, **settings))


def options_of(threshold: float = OUTLINING["threshold"]) -> list[str]:
    """The options with which `jaxpneumo predict` uses the same."""
    return [f"--threshold={threshold}", f"--removal-threshold={OUTLINING['removal_threshold']}", "--overlays=0"]


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> str:
        return self.json()["error"]


@dataclass(frozen=True)
class Client:
    """Asks a server on loopback, as programs do."""

    port: int
    engine: Any = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request. Underscores in the names of headers are hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def send(self, data: bytes, path: str = "/radiographs", name: str = "film.dcm", **headers: str) -> Answer:
        return self.ask("POST", path, data, X_File_Name=name, **headers)

    def infer(self, content: Any, **headers: str) -> Answer:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.ask("POST", "/v2/models/tiny/infer", body, **headers)


@contextmanager
def serving(predictor: Predictor) -> Iterator[Client]:
    """The server as `jaxpneumo page` starts it, in a thread. Without its libraries the test skips and says so."""
    for library in ("starlette", "uvicorn"):
        pytest.importorskip(library, reason=f"{library} is not installed: pip install 'jaxpneumo[serve]'")
    from jaxpneumo.serve.decoding import Decoders
    from jaxpneumo.serve.engine import Engine
    from jaxpneumo.serve.page import listen, make_server
    from jaxpneumo.serve.site import make_app

    engine = Engine(predictor)
    server = make_server(make_app(engine, Decoders(1, Reading(Path(), predictor.settings.size)), "tiny", "127.0.0.1"))
    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            assert engine.ready.wait(120)
            yield Client(listening.getsockname()[1], engine)
        finally:
            server.should_exit = True
            thread.join()
