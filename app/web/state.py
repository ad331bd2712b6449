"""The predictor while it opens and once it is open: what every request shares. Knows nothing of HTTP."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from app.errors import StartupError, Unavailable
from app.logs import log_progress
from app.metrics import Metrics
from app.serving.opening import open_predictor
from app.serving.predictor import ModelCard, Predictor
from app.settings import Settings
from app.web.access import ApiKeys, RateLimiter

STARTING_RETRY: Final = 2  # seconds
MAX_FETCHING: Final = 6  # images that are fetched at the same time: as much memory as uploads have

logger = logging.getLogger(__name__)


class Service:
    """What the requests share: the predictor once it is open, and until then how far opening has come."""

    def __init__(
        self, settings: Settings, metrics: Metrics, on_failure: Callable[[StartupError], None]
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self._on_failure = on_failure
        self.keys = ApiKeys(settings.api_keys)
        self.limiter = RateLimiter(settings.rate_limit)
        self.fetching = asyncio.Semaphore(MAX_FETCHING)
        self._predictor: Predictor | None = None
        self.phase = "starting"
        self.percent: int | None = None
        self.received: int | None = None
        self.total: int | None = None

    @property
    def predictor(self) -> Predictor:
        """The open predictor. Raises Unavailable while there is none."""
        if self._predictor is None:
            percent = "" if self.percent is None else f", {self.percent} %"
            raise Unavailable(
                f"The model is not ready yet ({self.phase}{percent}); try again in a moment.",
                "model-loading",
                retry_after=STARTING_RETRY,
            )
        return self._predictor

    @property
    def card(self) -> ModelCard | None:
        """What is served, once it is."""
        return None if self._predictor is None else self._predictor.card

    def report(
        self, phase: str, percent: int | None, received: int | None = None, total: int | None = None
    ) -> None:
        """Hear how far opening has come, and of a download the bytes."""
        if phase != self.phase:
            logger.info("%s", phase)
        else:
            log_progress(phase, percent, received)
        self.phase, self.percent, self.received, self.total = phase, percent, received, total

    def progress(self) -> dict[str, str | int | None]:
        """How far opening has come; of a download also the bytes."""
        progress = {"phase": self.phase, "percent": self.percent}
        return progress if self.received is None else progress | {"bytes": self.received, "total": self.total}

    async def open(self) -> None:
        """Open the predictor; a failure is logged as one sentence and handed to `on_failure`."""
        start = time.monotonic()
        try:
            self._predictor = await open_predictor(self.settings, self.report, self.metrics)
        except Exception as error:  # an unforeseen one must not leave a server that waits for ever
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
            logger.info("ready after %.2f s", time.monotonic() - start)

    async def close(self) -> None:
        """Let what is under way finish."""
        if self._predictor is not None:
            await self._predictor.close()
