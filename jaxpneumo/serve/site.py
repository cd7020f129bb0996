"""The page's routes: the page itself, files in and answers out, downloads, and KServe's protocol for programs.

    GET  /                            the page, one HTML document
    POST /radiographs                 a file; JSON of `answers.answer`
    POST /radiographs/{download}      a file; one of downloads.DOWNLOADS
    GET  /v2, /v2/health/live, /v2/health/ready, /v2/models/NAME, /v2/models/NAME/ready
    POST /v2/models/NAME/infer        see kserve.py

The body of a request to /radiographs is the file as it is, its name percent-encoded in X-File-Name. No request
is stored or logged. The event loop only moves bytes: processes decode, a thread predicts, other threads encode.
"""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from jaxpneumo import __version__
from jaxpneumo.dicom import arrays
from jaxpneumo.predict.finding import Finding
from jaxpneumo.predict.reading import Picture, Reading, shrink_radiograph
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import printable
from jaxpneumo.process.ranges import PROBABILITY
from jaxpneumo.serve import kserve
from jaxpneumo.serve.answers import answer, run_facts
from jaxpneumo.serve.decoding import Decoders, Upload
from jaxpneumo.serve.downloads import DOWNLOADS
from jaxpneumo.serve.engine import Engine
from jaxpneumo.serve.guard import Guard

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MOST_BYTES = 64 << 20  # of a request: an uncompressed radiograph of 16 bits and 33 megapixels
MOST_KEPT = 300 << 20  # of pictures in the browser; the others are asked for again when they are chosen
TOO_LARGE = f"the upload has more than {MOST_BYTES >> 20} MiB. `jaxpneumo predict` takes larger files."


def make_app(engine: Engine, decoders: Decoders, name: str, host: str) -> Guard:
    """The ASGI application.

    Args:
      engine: predicts; closed with the application.
      decoders: read files; closed with the application.
      name: of the model, in words and in KServe's routes.
      host: the address that the server listens at.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    @asynccontextmanager
    async def lifespan(app: "Starlette") -> AsyncIterator[None]:
        yield
        decoders.close()
        engine.close()

    def error(request: "Request", error: Exception) -> "Response":
        if isinstance(error, HTTPException):
            return JSONResponse({"error": error.detail}, error.status_code, error.headers)
        return JSONResponse({"error": str(error)}, 400)

    def failed(request: "Request", error: Exception) -> "Response":
        return JSONResponse({"error": "the server failed; its own output says where."}, 500)

    routes = [*_page_routes(engine, decoders, name), *_kserve_routes(engine, name)]
    handlers = {HTTPException: error, InputError: error, Exception: failed}
    app = Starlette(
        routes=[Route(path, endpoint, methods=[method]) for method, path, endpoint in routes],
        exception_handlers=handlers,
        lifespan=lifespan,
    )
    return Guard(app, host)


def _page_routes(engine: Engine, decoders: Decoders, name: str) -> list[tuple[str, str, Any]]:
    from starlette.exceptions import HTTPException
    from starlette.responses import HTMLResponse, JSONResponse, Response

    document, policy = page(
        run_facts(engine.predictor, engine.bands, name)
        | {
            "mostBytes": MOST_BYTES,
            "mostKept": MOST_KEPT,
            "downloads": [{"name": kind.name, "words": kind.words} for kind in DOWNLOADS],
        }
    )

    async def show(request: "Request") -> "Response":
        return HTMLResponse(document, headers={"Content-Security-Policy": policy})

    async def upload(request: "Request") -> tuple[bytes, Upload]:
        data, given = await _body(request), printable(unquote(request.headers.get("X-File-Name", "the file")))
        return data, await asyncio.wrap_future(decoders.read(data, given))

    async def read(request: "Request") -> "Response":
        _, found = await upload(request)
        finding = await _finding(engine, found.picture)
        # Megabytes of JSON are written in that thread too.
        return await asyncio.to_thread(lambda: JSONResponse(answer(found.image, finding, engine.predictor)))

    async def download(request: "Request") -> "Response":
        named = request.path_params["download"]
        kind = next((kind for kind in DOWNLOADS if kind.name == named), None)
        if kind is None:
            known = ", ".join(kind.name for kind in DOWNLOADS)
            raise HTTPException(404, f"there is no such download; there are {known}.")
        threshold = _threshold(request.headers.get("X-Threshold"))
        data, found = await upload(request)
        finding = await _finding(engine, found.picture, threshold)
        content = await asyncio.to_thread(kind.make, data, found, finding, engine.at(threshold))
        return Response(content, media_type=kind.media)

    return [("GET", "/", show), ("POST", "/radiographs", read), ("POST", "/radiographs/{download}", download)]


def _kserve_routes(engine: Engine, name: str) -> list[tuple[str, str, Any]]:
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse, Response

    version = engine.predictor.model_id[:12]
    reading = Reading(Path(), engine.predictor.settings.size, any_image=True)  # an array has no header to check

    def known(request: "Request") -> None:
        if request.path_params["name"] != name:
            raise HTTPException(404, f"there is no model of this name; there is {name}.")

    async def server(request: "Request") -> "Response":
        return JSONResponse(kserve.server_metadata(__version__))

    async def live(request: "Request") -> "Response":
        return JSONResponse({"live": True})

    async def ready(request: "Request") -> "Response":
        return JSONResponse({"ready": engine.ready.is_set()}, 200 if engine.ready.is_set() else 503)

    async def model_ready(request: "Request") -> "Response":
        known(request)
        return await ready(request)

    async def model(request: "Request") -> "Response":
        known(request)
        return JSONResponse(kserve.model_metadata(name, version))

    async def infer(request: "Request") -> "Response":
        known(request)
        body = await _body(request)
        asked = await asyncio.to_thread(kserve.read_request, body, request.headers.get(kserve.LENGTH))
        radiograph = await asyncio.to_thread(arrays.from_array, asked.image, "the image")
        picture = await asyncio.to_thread(shrink_radiograph, reading, Picture("the image"), radiograph)
        finding = await _finding(engine, picture)
        content, length = await asyncio.to_thread(kserve.write_answer, finding, asked, name, version)
        if length is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={kserve.LENGTH: str(length)})

    return [
        ("GET", "/v2", server),
        ("GET", "/v2/health/live", live),
        ("GET", "/v2/health/ready", ready),
        ("GET", "/v2/models/{name}", model),
        ("GET", "/v2/models/{name}/ready", model_ready),
        ("POST", "/v2/models/{name}/infer", infer),
    ]


def page(facts: dict[str, Any]) -> tuple[str, str]:
    """The page as one HTML document with the facts of a run, and the policy that lets it run its own script alone."""
    folder = resources.files("jaxpneumo.serve")
    script = "\n".join(folder.joinpath(file).read_text("utf-8") for file in ("mask.js", "drawing.js", "page.js"))
    style = folder.joinpath("page.css").read_text("utf-8")
    # "<" could end the element that holds the facts.
    parts = {"style": style, "script": script, "run": json.dumps(facts).replace("<", "\\u003c")}
    document = folder.joinpath("page.html").read_text("utf-8")
    for part, text in parts.items():
        document = document.replace(f"{{{{ {part} }}}}", text)
    sources = {kind: base64.b64encode(hashlib.sha256(parts[kind].encode()).digest()).decode() for kind in parts}
    policy = (
        f"default-src 'none'; script-src 'sha256-{sources['script']}'; style-src 'sha256-{sources['style']}'; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return document, policy


async def _finding(engine: Engine, picture: Picture, threshold: float | None = None) -> Finding:
    """The finding of a picture, with its probability."""
    return await asyncio.to_thread(await asyncio.wrap_future(engine.predict(picture, threshold)))


async def _body(request: "Request") -> bytes:
    """The whole body of a request; HTTPException 413 as soon as it is known to be too large."""
    from starlette.exceptions import HTTPException

    too_large = HTTPException(413, TOO_LARGE, {"Connection": "close"})  # or the rest would be taken and thrown away
    length = request.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > MOST_BYTES:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise too_large
    return bytes(body)


def _threshold(text: str | None) -> float | None:
    """The threshold that a request names; None: it names none."""
    try:
        value = None if text is None else float(text)
    except ValueError:
        value = -1.0
    if value is not None and not PROBABILITY.allows(value):
        raise InputError(f"X-Threshold is {text}; give {PROBABILITY}.")
    return value
