"""A real HTTP server on loopback, in a thread, that misbehaves as told."""

import http.server
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Handler = http.server.BaseHTTPRequestHandler
Answer = Callable[[Handler], None]


@contextmanager
def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[str]]]:
    """Answer every GET with `answer(handler)`; yields the base URL and the list of paths asked for."""
    asked: list[str] = []

    class Server(Handler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}", asked
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


def send_range(handler: Handler, content: bytes, headers: dict[str, str], cut: int | None = None) -> None:
    """The file as a good host sends it: the rest that Range asks for, if If-Range still holds; of what is
    announced only the first `cut` bytes.
    """
    validator = headers.get("ETag") or headers.get("Last-Modified")
    place = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    if place and handler.headers["If-Range"] == validator:
        begin = int(place[1])
        where = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}
        rest = content[begin:]
        send(handler, rest[:cut], 206, len(rest), headers | where)
    else:
        send(handler, content[:cut], 200, len(content), headers)
