"""The requests with photos: check the client, read the photos, await the answers while the client stays."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.errors import BadRequest, Code, RequestError, plain
from app.photos.encode import as_jpeg
from app.serving.predictor import Prediction
from app.settings import Settings
from app.web.access import admit
from app.web.problems import as_json, as_prediction
from app.web.upload import read_photo, read_photos

Answer = TypeVar("Answer")


class Failure(Struct, frozen=True):
    """How one of several photos failed; the members are those of a Problem."""

    status: int
    code: Code
    detail: str


def photo_routes(settings: Settings) -> list[Route]:
    """Return the routes of all requests with photos, without those that the settings switch off."""
    routes = [
        Route("/analyze", analyze, methods=["GET", "POST"] if settings.allow_url else ["POST"]),
        Route("/explain", explain, methods=["POST"]),
        Route("/picture", picture, methods=["POST"]),
    ]
    if settings.show_proof:
        routes.append(Route("/nearest", nearest, methods=["POST"]))
    if settings.feedback:
        routes.append(Route("/feedback", give_feedback, methods=["POST"]))
        routes.append(Route("/feedback/{key}", withdraw_feedback, methods=["DELETE"]))
    return routes


async def analyze(request: Request) -> Response:
    """POST /analyze: a photo as the one file of a form, or as the raw body -> its Prediction.

    With `allow_url` also GET /analyze?url= and a form with a field `url`. With `?many=1` several files of a
    form -> a list, with the status, code and detail of those that failed.
    """
    predict = request.state.service.predictor.predict
    if request.query_params.get("many") != "1":
        return as_prediction(request, await answer(request, predict))
    admit(request)
    photos = await read_photos(request)

    async def answers() -> list[Any]:
        return [await attempt(request, photo, first=not number) for number, photo in enumerate(photos)]

    return as_json(await unless_disconnected(request, answers()))


async def attempt(request: Request, photo: bytes, *, first: bool) -> Prediction | Failure:
    """Return the Prediction of one of many photos, or how it failed. Each counts for the rate limit."""
    predictor = request.state.service.predictor
    try:
        if not first:
            admit(request)
        with predictor.slot() as deadline:
            prediction: Prediction = await predictor.predict(photo, deadline)
            return prediction
    except RequestError as error:
        return Failure(error.status, error.code, str(error))


async def explain(request: Request) -> Response:
    """POST /explain: a photo as for /analyze -> the Explanation of its likeliest class, or of `?label=`."""
    predictor, label = request.state.service.predictor, request.query_params.get("label", "")
    return as_json(await answer(request, partial(predictor.explain, label=label)))


async def picture(request: Request) -> Response:
    """POST /picture: a photo as for /analyze -> a JPEG of it as the network sees it, upright and opaque."""
    predictor = request.state.service.predictor
    data = await answer(request, partial(predictor.apply, as_jpeg))
    return Response(data, media_type="image/jpeg", headers={"cache-control": "no-store"})


async def nearest(request: Request) -> Response:
    """POST /nearest: a photo as for /analyze -> the Neighbors of it among the photos of the proof."""
    predictor = request.state.service.predictor
    output = await answer(request, predictor.output)
    return as_json(list(predictor.familiarity.nearest(output)))


async def give_feedback(request: Request) -> Response:
    """POST /feedback?label=: a photo as for /analyze, to keep with its class -> the key to withdraw it."""
    service, label = request.state.service, request.query_params.get("label", "")

    async def keep(data: bytes, deadline: float) -> str:
        if label not in service.predictor.card.classes:
            raise BadRequest(f"There is no class '{plain(label, 80)}'.", "unknown-label")
        photo = await service.predictor.apply(as_jpeg, data, deadline)
        key: str = await service.feedback.give(label, photo)
        return key

    return JSONResponse({"key": await answer(request, keep)}, HTTPStatus.CREATED)


async def withdraw_feedback(request: Request) -> Response:
    """DELETE /feedback/KEY: delete a photo that was given."""
    admit(request)
    feedback = request.state.service.feedback  # None while the model opens
    if feedback is None or not await feedback.withdraw(request.path_params["key"]):
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return Response(None, HTTPStatus.NO_CONTENT)


async def answer(request: Request, ask: Callable[[bytes, float], Coroutine[Any, Any, Answer]]) -> Answer:
    """Await `ask` on the photo of a request. Raises RequestError."""
    admit(request)
    predictor = request.state.service.predictor  # or 503, before anything is read
    data = await read_photo(request)  # before the slot: a slow upload keeps no other request out
    with predictor.slot() as deadline:
        return await unless_disconnected(request, ask(data, deadline))


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Await `work`; cancel it if the client leaves. Raises ClientDisconnect."""
    asked, leaving = asyncio.create_task(work), asyncio.create_task(disconnect(request))
    try:
        await asyncio.wait((asked, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise ClientDisconnect
        return asked.result()
    finally:
        asked.cancel()
        leaving.cancel()


async def disconnect(request: Request) -> None:
    """Wait until the client leaves; read the body that nobody asked for, such as the empty one of a GET."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
