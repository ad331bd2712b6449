"""Every error this project raises, and the closed set of codes that a client can get.

    AppError
    |- StartupError                  the server cannot start: one sentence, exit code 1
    |  |- SettingsError              invalid settings.toml or APP_ variable
    |  |- DownloadError              no file at the link or path
    |  |  |- NotTheFile              another answer than the file, such as 404
    |  |  |- DownloadInterrupted     a retry may succeed; with `retry_after`
    |  |  `- ChecksumMismatch        another file than the expected one
    |  |- CheckpointError            a file that cannot be served
    |  |  |- UnsafeCheckpoint        a pickle that names code
    |  |  |- NotAClassifier          a network of another task, such as texts or boxes
    |  |  |- ActivationUnknown       a head whose activation is not in its weights
    |  |  |- ArchitectureUnknown     no graph fits its tensors
    |  |  `- ClassesMismatch         the class list does not fit its outputs
    |  |- ProofError                 the predictions differ from the notebook's
    |  |- Int8Unavailable            the network cannot compute in int8
    |  |- ToolMissing                a package or program that only this command needs
    |  |- ExportError                the folder of an export cannot be written, or its answers differ
    |  `- DeployError                Vercel's command line failed; with its exit code
    `- RequestError                  one request failed: a status, a code, a sentence
       |- BadRequest 400
       |- Unauthorized 401           no API key, or an unknown one
       |- PayloadTooLarge 413
       |- UnsupportedMedia 415
       |- BadImage 422               a picture that cannot be used
       |- UrlRefused 422             an image link that is not allowed
       |- TooManyRequests 429        with `retry_after`
       |- BadOutput 500              the network computed NaN or infinity
       |- NotExplained 501           this network has no heat map
       |- FetchFailed 502            no image at the link
       |- FetchTimeout 504
       |- FeedbackFull 507
       `- Unavailable 503            with `retry_after`
          `- QueueTimeout 503        the photo's deadline has passed

A message has three parts: the problem, the expectation, the remedy.
"""

from collections.abc import Mapping
from typing import ClassVar, Final, Literal

MAX_MESSAGE: Final = 3000  # characters; each foreign text in it has LIMIT
LIMIT: Final = 300  # characters of one name, title or phrase in a sentence
# Control characters, which terminals obey, and the line ends that only Unicode knows; marks that turn the
# direction of the text around them, or cannot be seen
CONTROLS: Final = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
MARKS: Final = (0x061C, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF)
HIDDEN: Final = {**dict.fromkeys(CONTROLS, " "), **dict.fromkeys((*MARKS, *range(0xE0000, 0xE0080)), "")}

Code = Literal[
    "bad-request",
    "empty-file",
    "no-file",
    "too-many-files",
    "too-many-parts",
    "field-too-large",
    "malformed-multipart",
    "unknown-label",
    "unknown-version",
    "unauthorised",
    "not-found",
    "method-not-allowed",
    "request-timeout",
    "payload-too-large",
    "uri-too-long",
    "unsupported-media-type",
    "unrecognised-image",
    "format-not-allowed",
    "not-an-image",
    "image-too-large",
    "truncated-image",
    "corrupt-image",
    "url-not-allowed",
    "rate-limited",
    "header-too-large",
    "internal",
    "bad-output",
    "not-explained",
    "fetch-failed",
    "overloaded",
    "queue-timeout",
    "model-loading",
    "fetch-timeout",
    "feedback-full",
]

# code -> HTTP status and meaning; docs/errors.md and /openapi.json are generated from it
CODES: Final[Mapping[Code, tuple[int, str]]] = {
    "bad-request": (400, "The request is not valid HTTP, or its method does not exist."),
    "empty-file": (400, "The file has 0 bytes."),
    "no-file": (400, "The request has no file."),
    "too-many-files": (400, "The form has too many files: one is allowed, or several with `?many=1`."),
    "too-many-parts": (400, "The form has too many parts."),
    "field-too-large": (400, "A text field, or the whole form without its file, is too large."),
    "malformed-multipart": (400, "The body is not valid multipart/form-data."),
    "unknown-label": (400, "The model has no class of this name."),
    "unknown-version": (400, "The model has no version of this name."),
    "unauthorised": (401, "The request has no API key, or an unknown one."),
    "not-found": (404, "The server has nothing at this address."),
    "method-not-allowed": (405, "The address does not take this method; the header Allow lists its methods."),
    "request-timeout": (408, "The headers or the body arrived too slowly."),
    "payload-too-large": (413, "The upload is larger than `max_upload_mb`."),
    "uri-too-long": (414, "The address is too long."),
    "unsupported-media-type": (
        415,
        "The content type is not multipart/form-data, image/*, application/octet-stream or application/json.",
    ),
    "unrecognised-image": (415, "The file is not a picture in a known format."),
    "format-not-allowed": (415, "The picture has a format that the server does not decode, such as HEIC."),
    "not-an-image": (415, "The link leads to a file that is not an image."),
    "image-too-large": (422, "The picture has too many pixels or bytes, or takes too long to decode."),
    "truncated-image": (422, "The end of the picture is missing."),
    "corrupt-image": (422, "The picture cannot be decoded."),
    "url-not-allowed": (
        422,
        "The link is invalid or leads to an address that the server does not fetch from.",
    ),
    "rate-limited": (429, "This client exceeds `rate_limit`; the header Retry-After says when to retry."),
    "header-too-large": (431, "The headers are too long."),
    "internal": (500, "The server has a bug; its log has a traceback under the request id."),
    "bad-output": (500, "The network computed NaN or infinity for this picture."),
    "not-explained": (501, "This network has no heat maps."),
    "fetch-failed": (502, "The link's host gave no image."),
    "overloaded": (503, "The queue is full; the header Retry-After says when to retry."),
    "queue-timeout": (503, "The photo waited past its deadline; the header Retry-After says when to retry."),
    "model-loading": (503, "The server is still starting; the header Retry-After says when to retry."),
    "fetch-timeout": (504, "The link's host was too slow."),
    "feedback-full": (507, "The place for feedback is full."),
}


def plain(text: object, limit: int = LIMIT) -> str:
    """Return foreign text on one line, without control and direction characters, of `limit` characters.

    Longer text ends in an ellipsis.
    """
    start = str(text)[: 2 * limit].encode("utf-8", "replace").decode()  # without half characters
    line = " ".join(start.translate(HIDDEN).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


class AppError(Exception):
    """The root of all errors whose message is written for a person: one line, without control characters."""

    def __init__(self, message: str) -> None:
        super().__init__(plain(message, MAX_MESSAGE))


class StartupError(AppError):
    """A reason why the server cannot start; the command line prints its message and ends."""

    exit_code: int = 1


class SettingsError(StartupError):
    """A setting that is unknown, of the wrong type, out of range, or in conflict with another one."""


class DownloadError(StartupError):
    """A checkpoint that cannot be downloaded, or a path without a file."""


class NotTheFile(DownloadError):
    """An answer of the host that is not the file, such as 404 or a web page; another try would not help."""


class DownloadInterrupted(DownloadError):
    """A broken transfer that may be resumed, `retry_after` seconds later if the host asked for a delay."""

    def __init__(self, message: str, retry_after: float = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ChecksumMismatch(DownloadError):
    """A file whose SHA-256 differs from the settings'."""


class CheckpointError(StartupError):
    """A file that is not a checkpoint, or one that cannot be served."""

    @classmethod
    def cut_short(cls, size: int, expected: str) -> "CheckpointError":
        """Make the error for a file of `size` bytes whose end is missing."""
        return cls(
            f"The file is cut short: it has {size:,} bytes, but {expected}. Download or upload it again."
        )


class UnsafeCheckpoint(CheckpointError):
    """A file that names code which a checkpoint does not need; nothing of it was run."""


class NotAClassifier(CheckpointError):
    """The file is a network of another task, or not a network."""


class ActivationUnknown(CheckpointError):
    """The weights of a head do not tell the activation between its layers."""


class ArchitectureUnknown(CheckpointError):
    """A file whose names and shapes fit no shipped graph."""


class ClassesMismatch(CheckpointError):
    """A class list whose length differs from the number of outputs."""


class ProofError(StartupError):
    """Predictions that differ from the notebook's for the photos of the proof."""


class Int8Unavailable(StartupError):
    """The network cannot compute in int8; the message is the reason, without a full stop."""


class ToolMissing(StartupError):
    """A missing package or program of one command; the message says how to install it."""


class ExportError(StartupError):
    """An export that cannot be written, or whose answers are not the server's."""


class DeployError(StartupError):
    """A failure of Vercel's command line, with its exit code; its output has been shown."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RequestError(AppError):
    """The failure of one request: `status` is the HTTP status, `code` a key of CODES."""

    status: ClassVar[int] = 500
    code: Code = "internal"

    def __init__(self, detail: str, code: Code | None = None, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.code = code or self.code
        self.retry_after = retry_after


class BadRequest(RequestError):
    """A request that is not a valid upload."""

    status = 400
    code = "bad-request"


class Unauthorized(RequestError):
    """A request without an API key, or with an unknown one."""

    status = 401
    code = "unauthorised"


class TooManyRequests(RequestError):
    """A client above its rate limit; it may retry after `retry_after` seconds."""

    status = 429
    code = "rate-limited"


class PayloadTooLarge(RequestError):
    """An upload above the size limit."""

    status = 413
    code = "payload-too-large"


class UnsupportedMedia(RequestError):
    """An upload that is not a picture in an accepted format."""

    status = 415
    code = "unrecognised-image"


class BadImage(RequestError):
    """A picture in an accepted format that cannot be used."""

    status = 422
    code = "corrupt-image"


class UrlRefused(RequestError):
    """An image link that the server does not fetch."""

    status = 422
    code = "url-not-allowed"


class FetchFailed(RequestError):
    """An image link whose host gave no image."""

    status = 502
    code = "fetch-failed"


class FetchTimeout(RequestError):
    """An image link whose host was too slow."""

    status = 504
    code = "fetch-timeout"


class FeedbackFull(RequestError):
    """A photo with its class that cannot be kept: the place for them is full."""

    status = 507
    code = "feedback-full"

    def __init__(self) -> None:
        super().__init__("No more photos can be kept here. The owner of this page must make room.")


class BadOutput(RequestError):
    """An output of the network with NaN or infinity."""

    status = 500
    code = "bad-output"


class NotExplained(RequestError):
    """A heat map that this network cannot give: its feature map or its head is unknown."""

    status = 501
    code = "not-explained"


class Unavailable(RequestError):
    """A server that cannot answer at the moment; the client may retry after `retry_after` seconds."""

    status = 503
    code: Code = "overloaded"


class QueueTimeout(Unavailable):
    """A photo that waited past its deadline; it was not computed."""

    code = "queue-timeout"

    def __init__(self) -> None:
        super().__init__("The photo has waited too long in the queue; try again shortly.", retry_after=2)
