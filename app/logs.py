"""The log: one escaped line for each record, as text or JSON.

A thread writes it, so a reader that stops reading does not block the server.
"""

import contextlib
import io
import json
import logging
import logging.handlers
import os
import queue
import sys
import threading
import time
from typing import Final, Literal, TextIO

from app.errors import CONTROLS, MARKS
from app.progress import progress_bar

LogFormat = Literal["text", "json"]

MAX_WAITING: Final = 10_000  # lines that wait for a reader; later ones are dropped
FLUSH_SECONDS: Final = 2.0  # at the end, for the lines that still wait
ESCAPES: Final = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for code in (*CONTROLS, *MARKS)
    if code != ord("\t")
}

requests = logging.getLogger("app.requests")


def log_request(method: str, path: str, status: int, code: str, seconds: float, request_id: str) -> None:
    """Log the line of a request. `path` is as the client sent it, still percent-encoded."""
    fields = {
        "method": method,
        "path": path[:200],
        "status": status,
        "code": code,
        "seconds": round(seconds, 3),
        "request_id": request_id,
    }
    message = "%(method)s %(path)s %(status)d %(code)s %(seconds).3fs %(request_id)s"
    requests.info(message, fields, extra={"fields": fields})


def log_progress(phase: str, percent: int | None, received: int | None) -> None:
    """Log a transient line: a terminal shows it until the next line, and other logs omit it."""
    bar = progress_bar(phase, percent, received)
    logging.getLogger("app.progress").info("%s", bar, extra={"transient": True})


class TextFormatter(logging.Formatter):
    """A format of time, level and message, in which no client can forge a line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).translate(ESCAPES)


class JsonFormatter(logging.Formatter):
    """A format of JSON objects: time (UTC), level, logger, message, fields of a request, traceback."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{record.msecs:03.0f}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Writer(logging.Handler):
    """A handler that writes lines to a stream in a thread; lines beyond MAX_WAITING are dropped.

    Transient lines go to a terminal only, where the next line overwrites them.
    """

    def __init__(self, stream: TextIO, *, terminal: bool = False) -> None:
        super().__init__()
        self._stream = stream
        self._begin = "\r\x1b[K" if terminal else ""
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        transient = getattr(record, "transient", False)
        if transient and not self._begin:
            return
        line = record.getMessage() if transient else self.format(record) + "\n"
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(self._begin + line)

    def close(self) -> None:
        """Write the lines that wait, for at most FLUSH_SECONDS."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
            self._thread.join(FLUSH_SECONDS)
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError, ValueError):  # closed, or the disk is full
                self._stream.write(line)
                self._stream.flush()


def open_standard_streams() -> None:
    """Open every closed standard stream: otherwise a client's socket gets its descriptor, and the output of
    libraries with it. Characters that their encoding does not have are escaped: on Windows many.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor: this one
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None for a program without a console
            stream.reconfigure(errors="backslashreplace")


def start_logging(log_format: LogFormat) -> Writer:
    """Log to standard error, and return the handler; the caller closes it."""
    stream = sys.stderr or open(os.devnull, "w")
    writer = Writer(stream, terminal=log_format == "text" and stream.isatty())
    writer.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(handlers=[writer], level=logging.INFO, force=True)
    return writer
