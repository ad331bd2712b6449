"""POST /{application}/predict: the JSON of Clipper, whose clients ask here without a change.

Clipper (2017 to 2019) took {"input": ...} or {"input_batch": [...]}; a photo is base64 there.
"""

import itertools
from typing import Final

import msgspec
from msgspec import UNSET, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from app.errors import BadRequest, UnsupportedMedia
from app.serving.application import Answer, DefaultPrediction
from app.web.access import admit
from app.web.analysis import attempt_all, by, pinned, unless_disconnected
from app.web.multipart import MAX_PARTS
from app.web.problems import as_json
from app.web.wrappings import decode_base64

QUERY_IDS: Final = itertools.count()


class Query(Struct, frozen=True):
    """A request: one photo, or several, as base64; `version` asks for a version of the model."""

    input: str | UnsetType = UNSET
    input_batch: tuple[str, ...] | UnsetType = UNSET
    version: str = ""


class Output(Struct, frozen=True):
    """The answer to one photo; `default` tells whether it is the application's default."""

    query_id: int
    output: str
    default: bool
    default_explanation: str | UnsetType = UNSET


async def predict(request: Request) -> Response:
    """POST /{application}/predict: a Query -> an Output, or of a batch {"batch_predictions": [...]}.

    A photo of the batch without an answer has the status, code and detail of its failure instead.
    """
    admit(request)
    answers = request.state.service.answers(request.state.site)  # or 503, before anything is read
    query = _query(await request.body())
    version = query.version or pinned(request)
    if query.input_batch is UNSET:
        photo = await _photo(query.input or "")
        answer = await unless_disconnected(request, answers.predict(photo, version))
        request.scope["code"] = answer.reason
        return as_json(_output(answer), by(answer.version))
    photos = [await _photo(text) for text in query.input_batch]
    outcomes = await unless_disconnected(request, attempt_all(request, photos, version))
    outputs = [_output(each) if isinstance(each, Answer) else each for each in outcomes]
    return Response(msgspec.json.encode({"batch_predictions": outputs}), media_type="application/json")


def _query(body: bytes) -> Query:
    """Read the body. Raises UnsupportedMedia, BadRequest."""
    try:
        query = msgspec.json.decode(body, type=Query)
    except (msgspec.DecodeError, UnicodeDecodeError):
        query = Query()
    if (query.input is UNSET) == (query.input_batch is UNSET):
        raise UnsupportedMedia(
            'JSON was expected: {"input": "..."} with the photo as base64, or {"input_batch": ["...", ...]}.',
            "unsupported-media-type",
        )
    if query.input_batch is not UNSET and len(query.input_batch) > MAX_PARTS:
        raise BadRequest(
            f"input_batch has {len(query.input_batch)} photos; at most {MAX_PARTS} are answered at once.",
            "too-many-files",
        )
    return query


async def _photo(text: str) -> bytes:
    photo = await decode_base64(text.encode("utf-8", "replace"))
    if photo is None:
        raise UnsupportedMedia(
            "The input is not base64; in Python: base64.b64encode(photo).decode()", "unsupported-media-type"
        )
    return photo


def _output(answer: Answer) -> Output:
    match answer.prediction:
        case DefaultPrediction(result=result, default_explanation=why):
            return Output(next(QUERY_IDS), result, True, why)
        case prediction:
            return Output(next(QUERY_IDS), prediction.result, False)
