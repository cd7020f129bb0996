"""Health and metrics of the listener over HTTP, on the loopback interface alone.

/health answers in JSON, /metrics in Prometheus' text format, version 0.0.4.
"""

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LOOPBACK = "127.0.0.1"
Labels = tuple[tuple[str, str], ...]


def metrics_text(values: Mapping[str, Mapping[Labels, float]], helps: Mapping[str, str]) -> str:
    """Metrics as Prometheus reads them.

    Args:
      values: by name, then by labels. A name that ends in _total is a counter, any other a gauge.
      helps: what each name means.
    """
    lines = []
    for name, by_labels in values.items():
        lines += [f"# HELP {name} {helps[name]}", f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}"]
        for labels, value in by_labels.items():
            inside = ",".join(f"{label}={json.dumps(text)}" for label, text in labels)
            lines.append(f"{name}{f'{{{inside}}}' if inside else ''} {value!r}")
    return "\n".join(lines) + "\n"


@contextmanager
def answering(port: int, problems: Callable[[], list[str]], metrics: Callable[[], str]) -> Iterator[int]:
    """Answers on a port of the loopback interface for the time of the block.

    Args:
      port: 0 is any free one.
      problems: in words; without any, /health answers 200, else 503.
      metrics: the text of /metrics.

    Yields:
      The port.

    Raises:
      OSError: the port cannot be bound.
    """

    server = _HealthServer((LOOPBACK, port), _handler(problems, metrics))
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="health", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _HealthServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tells errors of this program; a client that hangs up is none."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def _handler(problems: Callable[[], list[str]], metrics: Callable[[], str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            status, kind, text = 404, "text/plain", "there are /health and /metrics\n"
            if self.path == "/health":
                found = problems()
                status, kind = 503 if found else 200, "application/json"
                text = json.dumps({"ok": not found, "problems": found})
            elif self.path == "/metrics":
                status, kind, text = 200, "text/plain; version=0.0.4", metrics()
            content = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Says nothing: a request for the metrics comes every few seconds."""

    return Handler
