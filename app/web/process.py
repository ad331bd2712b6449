"""The serving process: its log, signals and memory."""

import contextlib
import logging
import signal
from collections.abc import Callable

from app.catalog import Catalog
from app.errors import StartupError
from app.logs import start_logging
from app.photos.limits import silence_libtiff
from app.web.app import create_app
from app.web.linking import LOCAL, MakeFleet
from app.web.listening import Server, server_config


def serve(
    catalog: Catalog,
    read: Callable[[], Catalog],
    host: str,
    port: int,
    make_fleet: MakeFleet = LOCAL,
) -> None:
    """Serve a catalog until a signal stops the server; on SIGHUP serve what `read` returns.

    Raises StartupError if a model cannot be opened, or the server cannot listen.
    """
    silence_libtiff()
    with contextlib.closing(start_logging(catalog.settings.log_format)):
        # its line on an address that cannot be bound; ours has the remedy
        logging.getLogger("uvicorn.error").addFilter(lambda record: not isinstance(record.msg, OSError))
        failures: list[StartupError] = []

        def stop(error: StartupError) -> None:
            failures.append(error)
            server.should_exit = True

        app = create_app(catalog, stop, make_fleet)
        server = Server(server_config(app, host, port), lambda: app.state.service.reload(read))
        # uvicorn drains on SIGTERM and then raises the signal again; a drained server exits with 0
        signal.signal(signal.SIGTERM, lambda *_: None)
        server.run()
    if failures:
        raise failures[0]
