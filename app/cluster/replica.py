"""A replica of a version: the same model that `serve` opens, in a process of its own. Does not import Ray."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from app import errors
from app.errors import RequestError
from app.metrics import Metrics
from app.serving.application import Question
from app.serving.local import LocalEndpoint
from app.serving.opening import open_model
from app.serving.predictor import Prediction, Predictor
from app.settings import Settings


class Refusal(Struct, frozen=True):
    """A RequestError as a value: Ray logs every exception of a replica with its traceback."""

    kind: str
    detail: str
    code: str
    retry_after: int | None


class Replica:
    """A copy of a version: the model, opened as `serve` opens it, in a process of its own."""

    async def __init__(self, settings: Mapping[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        converted = msgspec.convert(settings, Settings)
        model = await open_model(converted, lambda *_: None)
        self._endpoint = LocalEndpoint(Predictor(model, Metrics()), converted)

    async def predict(self, data: bytes, seconds: float) -> Prediction | Refusal:
        """Answer a photo."""
        try:
            return await self._endpoint.predict(data, seconds)
        except RequestError as error:
            return _refusal(error)

    async def ask(self, question: Question, data: bytes, seconds: float, *arguments: str) -> Any:
        """Answer another question about a photo."""
        try:
            return await self._endpoint.ask(question, data, seconds, *arguments)
        except RequestError as error:
            return _refusal(error)


def _refusal(error: RequestError) -> Refusal:
    return Refusal(type(error).__name__, str(error), error.code, error.retry_after)


def raised(refusal: Refusal) -> RequestError:
    """Return the error that a replica returned as a value."""
    kind = getattr(errors, refusal.kind)
    error: RequestError = kind.__new__(kind)
    RequestError.__init__(error, refusal.detail, refusal.code, refusal.retry_after)  # type: ignore[arg-type]
    return error
