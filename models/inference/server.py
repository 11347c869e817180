"""The local server of `sample.py --explore`: one page and three endpoints, for this machine alone."""

import json
import os
import sys
import webbrowser
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from threading import Thread
from typing import Any

from degrain.models.core.errors import InputError
from degrain.models.inference.explore import Choice, Explorer

HOST, PORT = "127.0.0.1", 8000

MOST_BYTES = 64 * 2**20  # of a request: a photograph of any camera

PAGE = Path(__file__).with_name("explore.html")

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'"
"""What the page may load, told to the browser: its own text, data URIs, and the endpoints of this server."""


class Refused(Exception):
    """A request that is not answered; its arguments are the HTTP status and a line."""


class Server(ThreadingHTTPServer):
    """Serves an explorer on the loopback address. A thread for each request, as browsers open idle connections.

    Args:
        explorer: draws.
        port: 0 for any free one.

    Raises:
        InputError: the port cannot be used.
    """

    def __init__(self, explorer: Explorer, port: int = PORT) -> None:
        self.explorer = explorer
        self.worker = ThreadPoolExecutor(1)  # draws one after the other, by one pool of PyTorch's threads
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"explore: port {port}: {reason}; choose another --port, or 0 for any free one") from None

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's name, which may ask the network."""
        TCPServer.server_bind(self)

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def server_close(self) -> None:
        super().server_close()
        self.worker.shutdown(cancel_futures=True)


class Handler(BaseHTTPRequestHandler):
    """Answers one request; what the user can correct is a line with status 400."""

    server: Server
    timeout = 60  # seconds without a byte

    def do_GET(self) -> None:
        pages: dict[str, Callable[[], Any]] = {"/": PAGE.read_bytes, "/model": self.server.explorer.model}
        self.answer(pages)

    def do_POST(self) -> None:
        explorer = self.server.explorer
        self.answer(
            {
                "/draw": lambda: explorer.draw(Choice.of(self.json())),
                "/photograph": lambda: explorer.photograph(self.body),
            }
        )

    def answer(self, endpoints: dict[str, Callable[[], Any]]) -> None:
        """Send what an endpoint returns, bytes of HTML or values for JSON."""
        try:
            self.check()
            self.body = self.rfile.read(self.length())
            if self.path not in endpoints:
                raise Refused(404, f"{self.path}: there is {', '.join(endpoints)}")
            status, found = 200, self.server.worker.submit(endpoints[self.path]).result()
        except InputError as error:
            status, found = 400, {"error": str(error)}
        except Refused as error:
            status, found = error.args[0], {"error": error.args[1]}
        except Exception:
            self.send(500, {"error": "a bug of degrain; its traceback is in the terminal"})
            raise
        self.send(status, found)

    def check(self) -> None:
        """Refuse the requests of other sites, which a browser on this machine can send, too."""
        own = {f"{name}:{self.server.server_address[1]}" for name in (HOST, "localhost")}
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        if host not in own or origin not in (None, f"http://{host}"):
            raise Refused(403, "this page is for its own machine alone")

    def length(self) -> int:
        """Return the length of the request's body."""
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal():
            raise Refused(400, "Content-Length is no number")
        if int(length) > MOST_BYTES:
            raise Refused(413, f"more than {MOST_BYTES >> 20} MB; give a smaller image")
        return int(length)

    def json(self) -> Any:
        """Return the body's values. InputError if it is no JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise InputError("draw: the request is no JSON") from None

    def send(self, status: int, found: Any) -> None:
        """Send an answer; a browser that does not wait for it any more is no error."""
        page = isinstance(found, bytes)
        content = found if page else json.dumps(found).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8" if page else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)
        except ConnectionError:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Print no line for a request."""


def has_display() -> bool:
    """Return True if a browser of this machine can be seen; without one webbrowser may start one in the terminal."""
    if sys.platform == "darwin":
        return "SSH_CONNECTION" not in os.environ
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def serve(explorer: Explorer, port: int = PORT) -> None:
    """Serve the page until Ctrl-C; print its address, and open a browser if there is a display."""
    with Server(explorer, port) as server:
        print(f"explore: {server.url} (this machine alone; Ctrl-C ends it)", flush=True)
        if has_display():
            Thread(target=webbrowser.open, args=[server.url], daemon=True).start()  # some browsers return at their end
        server.serve_forever()
