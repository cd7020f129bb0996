"""Which requests the page's server answers: those that a page of its own, or a program of this machine, has sent.

A web site elsewhere can make its visitors' browsers ask a server on loopback. It does so under its own name, which it
has pointed to 127.0.0.1 (DNS rebinding), or by a request across sites. Host and Origin tell both.
"""

import ipaddress
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """Wraps an ASGI application: refuses strangers' requests, and adds HEADERS to every answer.

    Args:
      app: the application.
      host: the address that it listens at.
    """

    def __init__(self, app: "ASGIApp", host: str):
        self._app, self._host = app, host

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """See ASGI."""
        from starlette.datastructures import Headers, MutableHeaders
        from starlette.responses import JSONResponse

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: "Message") -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        refusal = why_refused(headers.get("host", ""), headers.get("origin"), self._host)
        app = JSONResponse({"error": refusal}, 403) if refusal else self._app
        await app(scope, receive, send_with_headers)


def why_refused(host: str, origin: str | None, bound: str) -> str:
    """Why a request is refused, in words; "" if it is answered.

    Args:
      host: its Host header.
      origin: its Origin header; None if it has none, as from programs.
      bound: the address that the server listens at.
    """
    name = _name(host)
    if not is_own_name(name, bound):
        return f"this server is not called {name!r}. Use the address that `jaxpneumo page` printed."
    if origin is not None and origin.partition("://")[2] != host:
        return "the request comes from a page of another site."
    return ""


def is_own_name(name: str, bound: str) -> bool:
    """Whether a name or address can mean this server: no name that somebody else can have pointed to it."""
    if name in LOOPBACK or name == bound.lower():
        return True
    if is_loopback(bound):
        return False
    return _is_address(name) or name in (socket.gethostname().lower(), socket.getfqdn().lower())


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach an address."""
    return host.lower() == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _name(host: str) -> str:
    """The name of a Host header, without its port, in lower case."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
