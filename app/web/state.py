"""The state that all requests share: the predictor, while it opens and once it is open.

Knows nothing of HTTP.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from app.errors import StartupError, Unavailable
from app.logs import log_progress
from app.metrics import Metrics
from app.serving.feedback import Feedback, open_feedback
from app.serving.opening import open_model
from app.serving.predictor import Predictor
from app.settings import Settings
from app.web.access import ApiKeys, RateLimiter

STARTING_RETRY: Final = 2  # seconds
MAX_FETCHING: Final = 6  # images fetched at the same time: as much memory as uploads have

HOUR: Final = 3600  # seconds

logger = logging.getLogger(__name__)


OnFailure = Callable[[StartupError], None]


class Service:
    """The state of one server: the predictor once it is open, and until then the progress of opening it."""

    def __init__(self, settings: Settings, metrics: Metrics, on_failure: OnFailure) -> None:
        self.settings = settings
        self.metrics = metrics
        self._on_failure = on_failure
        self.keys = ApiKeys(settings.api_keys)
        self.limiter = RateLimiter(settings.rate_limit)
        self.fetching = asyncio.Semaphore(MAX_FETCHING)
        self.feedback: Feedback | None = None
        self._predictor: Predictor | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self.phase = "starting"
        self.percent: int | None = None
        self.received: int | None = None
        self.total: int | None = None

    @property
    def predictor(self) -> Predictor:
        """Return the open predictor. Raises Unavailable while there is none."""
        if self._predictor is None:
            percent = "" if self.percent is None else f", {self.percent} %"
            raise Unavailable(
                f"The model is not ready yet ({self.phase}{percent}); try again in a moment.",
                "model-loading",
                retry_after=STARTING_RETRY,
            )
        return self._predictor

    def report(
        self, phase: str, percent: int | None, received: int | None = None, total: int | None = None
    ) -> None:
        """Note and log the progress of opening: a phase, its percentage, and the bytes of a download."""
        if phase != self.phase:
            logger.info("%s", phase)
        else:
            log_progress(phase, percent, received)
        self.phase, self.percent, self.received, self.total = phase, percent, received, total

    def progress(self) -> dict[str, str | int | None]:
        """Return the progress of opening, with the bytes of a download."""
        progress = {"phase": self.phase, "percent": self.percent}
        return progress if self.received is None else progress | {"bytes": self.received, "total": self.total}

    async def open(self) -> None:
        """Open the predictor; hand a failure to `on_failure`."""
        start = time.monotonic()
        try:
            predictor = Predictor(await open_model(self.settings, self.report), self.metrics)
            self.feedback = open_feedback(self.settings, predictor.card.classes)
            self._predictor = predictor
        except Exception as error:  # an unexpected one must not leave a server that never gets ready
            self.report("failed", None)
            if not isinstance(error, StartupError):
                logger.exception("the model could not be opened")
                error = StartupError(
                    f"the model could not be opened ({type(error).__name__}): a bug; please report it"
                )
            self._on_failure(error)
        else:
            card = self._predictor.card
            self.metrics.model.info({"architecture": card.architecture, "sha256": card.sha256})
            self.report("ready", 100)
            if self.feedback:
                self._sweeping = asyncio.create_task(sweep_hourly(self.feedback))
            logger.info("ready after %.2f s", time.monotonic() - start)

    async def close(self) -> None:
        """Finish the requests under way and close the predictor."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._predictor is not None:
            await self._predictor.close()


async def sweep_hourly(feedback: Feedback) -> None:
    """Delete the photos whose time is over, also where nobody sends a new one."""
    while True:
        try:
            await feedback.sweep()
        except OSError as error:
            logger.warning("feedback cannot be swept: %s", error)
        await asyncio.sleep(HOUR)
