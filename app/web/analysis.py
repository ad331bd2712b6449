"""The requests with photos: check the client, read the photos, await the answers while the client stays."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from http import HTTPStatus
from typing import Any, TypeVar

from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.errors import BadRequest, Code, RequestError, plain
from app.serving.application import Answer, Application, Question, Single
from app.settings import Settings
from app.web.access import admit
from app.web.problems import as_json, as_prediction
from app.web.upload import read_photo, read_photos

Answers = Application | Single
Result = TypeVar("Result")


class Failure(Struct, frozen=True):
    """How one of several photos failed; the members are those of a Problem."""

    status: int
    code: Code
    detail: str


async def analyze(request: Request) -> Response:
    """POST /analyze: a photo as the one file of a form, or as the raw body -> its Prediction.

    With `allow_url` also GET /analyze?url= and a form with a field `url`. With `?many=1` several files of a
    form -> a list, with the status, code and detail of those that failed.
    """
    if request.query_params.get("many") != "1":
        answer = await ask(request, lambda answers, photo: answers.predict(photo, pinned(request)))
        request.scope["code"] = answer.reason
        return as_prediction(request, answer.prediction, by(answer.version))
    admit(request)
    photos = await read_photos(request)
    answers = await unless_disconnected(request, attempt_all(request, photos, pinned(request)))
    return as_json([each.prediction if isinstance(each, Answer) else each for each in answers])


async def attempt_all(request: Request, photos: Sequence[bytes], version: str) -> list[Answer | Failure]:
    """Answer several photos one after another; return how each one failed that has no answer."""
    return [await _attempt(request, photo, version, first=not i) for i, photo in enumerate(photos)]


async def _attempt(request: Request, photo: bytes, version: str, *, first: bool) -> Answer | Failure:
    """Return the answer to one of many photos, or how it failed. Each counts for the rate limit."""
    try:
        if not first:
            admit(request)
        answers: Answers = request.state.service.answers(request.state.site)
        return await answers.predict(photo, version)
    except RequestError as error:
        return Failure(error.status, error.code, str(error))


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


async def explain(request: Request) -> Response:
    """POST /explain: a photo as for /analyze -> the Explanation of its likeliest class, or of `?label=`."""
    explanation, version = await put(request, "explain", request.query_params.get("label", ""))
    return as_json(explanation, by(version))


async def picture(request: Request) -> Response:
    """POST /picture: a photo as for /analyze -> a JPEG of it as the network sees it, upright and opaque."""
    data, version = await put(request, "picture")
    headers = {"cache-control": "no-store", **by(version)}
    return Response(data, media_type="image/jpeg", headers=headers)


async def nearest(request: Request) -> Response:
    """POST /nearest: a photo as for /analyze -> the Neighbors of it among the photos of the proof."""
    neighbors, version = await put(request, "nearest")
    return as_json(list(neighbors), by(version))


async def give_feedback(request: Request) -> Response:
    """POST /feedback?label=: a photo as for /analyze, to keep with its class -> the key to withdraw it."""
    feedback, label = request.state.site.feedback, request.query_params.get("label", "")

    async def keep(answers: Answers, data: bytes) -> str:
        if label not in answers.card.classes:
            raise BadRequest(f"There is no class '{plain(label, 80)}'.", "unknown-label")
        photo, _ = await answers.ask("picture", data)
        key: str = await feedback.give(label, photo)
        return key

    return JSONResponse({"key": await ask(request, keep)}, HTTPStatus.CREATED)


async def withdraw_feedback(request: Request) -> Response:
    """DELETE /feedback/KEY: delete a photo that was given."""
    admit(request)
    feedback = request.state.site.feedback  # None while the model opens
    if feedback is None or not await feedback.withdraw(request.path_params["key"]):
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return Response(None, HTTPStatus.NO_CONTENT)


async def put(request: Request, question: Question, *arguments: str) -> tuple[Any, str]:
    """Return the answer to a question about the photo of a request, and its version. Raises RequestError."""
    version = pinned(request)
    return await ask(request, lambda answers, photo: answers.ask(question, photo, *arguments, pinned=version))


async def ask(request: Request, question: Callable[[Answers, bytes], Coroutine[Any, Any, Result]]) -> Result:
    """Await the answer to a question about the photo of a request. Raises RequestError."""
    admit(request)
    answers = request.state.service.answers(request.state.site)  # or 503, before anything is read
    photo = await read_photo(request)
    return await unless_disconnected(request, question(answers, photo))


def pinned(request: Request) -> str:
    """Return the version that a request asks for, "" for the one that the application is linked to."""
    return request.query_params.get("version", "")


def by(version: str) -> dict[str, str]:
    """Return the header that names the version of an answer; none for the one model of a server."""
    return {"x-model": version} if version else {}


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
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
