"""Every error this project raises.

    AppError
    |- StartupError                  the server cannot start: one sentence, exit code 1
    |  |- SettingsError              settings.toml or an APP_ variable
    |  |- DownloadError              the file could not be had
    |  |  |- DownloadInterrupted     it may be had by another try; with `retry_after`
    |  |  `- ChecksumMismatch        it was had, but it is another file
    |  |- CheckpointError            the file was had, but cannot be served
    |  |  |- UnsafeCheckpoint        it names code that a file of weights has no use for
    |  |  |- ArchitectureUnknown     no graph fits its tensors
    |  |  `- ClassesMismatch         the class list does not fit its outputs
    |  |- ProofError                 the answers are not the notebook's
    |  |- ToolMissing                a package or program that only this command needs
    |  `- DeployError                Vercel's command line refused; its exit code is ours
    `- RequestError                  one request failed: a status, a code from a closed set, a sentence
       |- BadRequest 400             `code`: empty-file, no-file, too-many-files, malformed-multipart, ...
       |- Unauthorized 401           no key, or none that fits
       |- PayloadTooLarge 413
       |- UnsupportedMedia 415       `code`: unsupported-media-type, unrecognized-image, format-not-allowed
       |- BadImage 422               `code`: image-too-large, truncated-image, corrupt-image
       |- UrlRefused 422             no image is fetched from there
       |- TooManyRequests 429        `code`: rate-limited; with `retry_after`
       |- BadOutput 500
       |- NotExplained 501             there is no heat map of this network
       |- FetchFailed 502            the link gave no image
       |- FetchTimeout 504
       `- Unavailable 503            `code`: model-loading, overloaded; with `retry_after`
          `- QueueTimeout 503        the photo waited past its deadline

A message says what was found, what was expected, and what to do.
"""

from typing import ClassVar


class AppError(Exception):
    """The root: everything below is meant to be read by a person."""


class StartupError(AppError):
    """The server cannot start; the message is the one sentence that is logged."""

    exit_code: int = 1


class SettingsError(StartupError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another one."""


class DownloadError(StartupError):
    """The checkpoint could not be downloaded, or is no file on this machine."""


class DownloadInterrupted(DownloadError):
    """A try broke off; another one may go on, `retry_after` seconds later if the host said so."""

    def __init__(self, message: str, retry_after: float = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ChecksumMismatch(DownloadError):
    """The file is not the one whose sha256 the settings give."""


class CheckpointError(StartupError):
    """The file is not a checkpoint that can be served."""


class UnsafeCheckpoint(CheckpointError):
    """The file names code that no file of weights has a use for; nothing of it was run."""


class ArchitectureUnknown(CheckpointError):
    """No shipped graph fits the names and shapes in the file."""


class ClassesMismatch(CheckpointError):
    """The class list has another length than the head has outputs."""


class ProofError(StartupError):
    """The served answers differ from those that the notebook gave for the photos of the proof."""


class ToolMissing(StartupError):
    """A command needs what serving does not; the message says how to install it."""


class DeployError(StartupError):
    """Vercel's command line ended with `exit_code`; what it said has been shown."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RequestError(AppError):
    """One request failed. `status` is the HTTP status, `code` names the failure within a closed set."""

    status: ClassVar[int] = 500
    code: str = "internal"

    def __init__(self, detail: str, code: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.code = code or self.code
        self.retry_after = retry_after


class BadRequest(RequestError):
    """The request is not what an upload looks like."""

    status = 400
    code = "bad-request"


class Unauthorized(RequestError):
    """The request has no key, or none that fits."""

    status = 401
    code = "unauthorised"


class TooManyRequests(RequestError):
    """This client asks too often: `retry_after` says after how many seconds to try again."""

    status = 429
    code = "rate-limited"


class PayloadTooLarge(RequestError):
    """The upload has more bytes than allowed."""

    status = 413
    code = "payload-too-large"


class UnsupportedMedia(RequestError):
    """The upload is no picture in an accepted format."""

    status = 415
    code = "unrecognized-image"


class BadImage(RequestError):
    """The upload is a picture in an accepted format, but cannot be used."""

    status = 422
    code = "corrupt-image"


class UrlRefused(RequestError):
    """No image is fetched from this link."""

    status = 422
    code = "url-not-allowed"


class FetchFailed(RequestError):
    """The link of an image gave none."""

    status = 502
    code = "fetch-failed"


class FetchTimeout(RequestError):
    """The link of an image gave none in time."""

    status = 504
    code = "fetch-timeout"


class BadOutput(RequestError):
    """The network answered with something that is no number."""

    status = 500
    code = "bad-output"


class NotExplained(RequestError):
    """The network that is served has no map of features from which to say where it looked."""

    status = 501
    code = "not-explained"


class Unavailable(RequestError):
    """Not now: `retry_after` says after how many seconds to try again."""

    status = 503
    code = "overloaded"


class QueueTimeout(Unavailable):
    """The photo waited past its deadline and was not computed."""

    code = "queue-timeout"

    def __init__(self) -> None:
        super().__init__("The photo has waited too long in the queue; try again shortly.", retry_after=2)
