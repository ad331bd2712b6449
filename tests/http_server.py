"""A real HTTP server on loopback, in a thread, that misbehaves as told."""

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Handler = http.server.BaseHTTPRequestHandler


@contextmanager
def serving(answer: Callable[[Handler], None]) -> Iterator[tuple[str, list[str]]]:
    """Answer every GET with `answer(handler)`; yields the base URL and the list of paths asked for."""
    asked: list[str] = []

    class Server(Handler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def send(
    handler: Handler,
    body: bytes,
    status: int = 200,
    length: int | None = None,
    headers: dict[str, str] | None = None,
) -> None:
    """A whole answer, with a Content-Length that may lie."""
    handler.send_response(status)
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)
