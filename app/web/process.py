"""The serving process: its log, signals and memory."""

import contextlib
import logging
import signal

from app.errors import StartupError
from app.logs import start_logging
from app.memory import return_large_blocks
from app.photos.limits import silence_libtiff
from app.settings import Settings
from app.web.app import create_app
from app.web.listening import Server, server_config


def serve(settings: Settings, host: str, port: int) -> None:
    """Serve until a signal stops the server.

    Raises StartupError if the model cannot be opened, or the server cannot listen.
    """
    silence_libtiff()
    return_large_blocks()
    with contextlib.closing(start_logging(settings.log_format)):
        # its line on an address that cannot be bound; ours has the remedy
        logging.getLogger("uvicorn.error").addFilter(lambda record: not isinstance(record.msg, OSError))
        failures: list[StartupError] = []

        def stop(error: StartupError) -> None:
            failures.append(error)
            server.should_exit = True

        server = Server(server_config(create_app(settings, stop), host, port))
        # uvicorn drains on SIGTERM and then raises the signal again; a drained server exits with 0
        signal.signal(signal.SIGTERM, lambda *_: None)
        server.run()
    if failures:
        raise failures[0]
