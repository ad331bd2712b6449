"""The settings: one frozen object, checked once."""

import ipaddress
import math
import typing
from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct
from msgspec.structs import fields

from app.errors import SettingsError
from app.logs import LogFormat
from app.photos.decode import Exif
from app.photos.resample import PadMode
from app.photos.steps import ResizeMethod
from app.photos.transforms import IMAGENET_MEAN, IMAGENET_STD, PipelineName

MODELS: Final = Path(__file__).parent / "models"  # the demo, and the cache of downloads
DEMO: Final = MODELS / "stage-2.pth"  # the checkpoint of the shipped settings.toml
# the values of the setting `engine`, and the module of app/engines that each one imports
ENGINES: Final = {"auto": "onnx_runtime", "fastai": "learner"}
ORIGIN: Final = r"^(\*|https?://[^/\s]+)$"
Channels = Annotated[tuple[float, ...], Meta(min_length=1, max_length=3)]
PrecisionName = Literal["float32", "auto", "int8"]
Words = Annotated[str, Meta(max_length=2000)]  # of a notebook
Side = Annotated[int, Meta(ge=16, le=1024)]
Sides = tuple[Side, Side]


class Settings(Struct, frozen=True, kw_only=True):
    """The settings. The annotation of each one has its range and its meaning."""

    model_url: Annotated[
        str,
        Meta(min_length=1, description="The checkpoint: an https link, share links included, or a path."),
    ]
    classes: Annotated[
        tuple[Annotated[str, Meta(min_length=1)], ...],
        Meta(
            min_length=2,
            description="Your classes in the order of your notebook: `learn.dls.vocab` in fastai v2, "
            "`data.classes` in v1. An export knows them.",
        ),
    ] = ()
    architecture: Annotated[
        str,
        Meta(description="Needed only where the file fits two architectures: the one that was trained."),
    ] = ""
    head_activation: Annotated[
        Literal["auto", "none", "relu", "gelu", "silu", "tanh", "hardswish", "leaky_relu"],
        Meta(description="The activation between the linear layers of your own head, if the file has none."),
    ] = "auto"
    proof_url: Annotated[
        str,
        Meta(
            description="Link or path of proof.json: the server refuses to start unless it reproduces these "
            "predictions."
        ),
    ] = ""
    model_sha256: Annotated[
        str,
        Meta(pattern="^([0-9a-f]{64})?$", description="The server refuses a file with another SHA-256."),
    ] = ""
    engine: Annotated[
        str,
        Meta(description='"fastai" predicts with a real Learner, which needs torch; "auto" does not.'),
    ] = "auto"
    precision: Annotated[
        PrecisionName,
        Meta(
            description='"auto" computes in int8 if the proof agrees and int8 is faster. "int8" refuses to '
            "start if the proof disagrees."
        ),
    ] = "float32"
    pipeline: Annotated[
        Literal["auto"] | PipelineName,
        Meta(description='"auto" is "fastai1" for a checkpoint of fastai v1, otherwise "resize".'),
    ] = "auto"
    image_size: Annotated[Sides, Meta(description="The network's input: one side, or [height, width].")] = (
        224,
        224,
    )
    resize_method: Annotated[
        ResizeMethod, Meta(description='`method` of Resize, in the pipelines "resize" and "fastai1".')
    ] = "crop"
    pad_mode: Annotated[PadMode, Meta(description='`pad_mode` of Resize, for resize_method = "pad".')] = (
        "reflection"
    )
    presize: Annotated[
        Sides,
        Meta(description='Size of the Resize before aug_transforms(size=...), in the pipeline "presize".'),
    ] = (460, 460)
    val_xtra: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description='`val_xtra` of RandomResizedCrop, in the pipeline "random_resized_crop".',
        ),
    ] = 0.14
    mean: Annotated[
        Channels,
        Meta(description="Mean of Normalize, for pixels from 0 to 1. Without Normalize: [0, 0, 0]."),
    ] = IMAGENET_MEAN
    std: Annotated[
        Channels, Meta(description="Standard deviation of Normalize. Without Normalize: [1, 1, 1].")
    ] = IMAGENET_STD
    item_tfms: Annotated[
        Words, Meta(description="fastai v2's `item_tfms` as your notebook has it; in place of `pipeline`.")
    ] = ""
    batch_tfms: Annotated[Words, Meta(description="fastai v2's `batch_tfms` as your notebook has it.")] = ""
    ds_tfms: Annotated[
        Words,
        Meta(description="fastai v1's `ds_tfms` and the arguments after it, such as size."),
    ] = ""
    transforms: Annotated[
        Words, Meta(description="torchvision's `Compose` for validation; in place of `pipeline`.")
    ] = ""
    gray: Annotated[bool, Meta(description="For PILImageBW: the network is shown gray photos.")] = False
    pillow: Annotated[
        str,
        Meta(
            pattern=r"^(\d+(\.\d+)*)?$",
            description="Pillow's version in your notebook: from 13 on it rounds some photos differently.",
        ),
    ] = ""
    multi_label: Annotated[
        bool, Meta(description="For MultiCategoryBlock: a photo can have several classes, or none.")
    ] = False
    exif: Annotated[
        Exif,
        Meta(description='"turn" shows the network upright photos; "ignore" does as fastai does.'),
    ] = "turn"
    jpeg_downscale: Annotated[
        bool,
        Meta(
            description="Decode large JPEGs at a reduced size: three times faster, slightly different "
            "predictions."
        ),
    ] = False
    labels: Annotated[
        tuple[Annotated[str, Meta(min_length=1)], ...],
        Meta(
            description="Names that people read in place of the classes, in their order, such as those for "
            "True and False. The page, all answers and /model have them."
        ),
    ] = ()
    threshold: Annotated[
        float,
        Meta(ge=0, le=1, description="With multi_label: the lowest score of a class in the result."),
    ] = 0.5
    unsure_below: Annotated[
        float, Meta(ge=0, le=1, description="Answers with a lower confidence are marked as unsure.")
    ] = 0.0
    unfamiliar_below: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Photos with a lower familiarity are marked as unsure. Needs proof_url.",
        ),
    ] = 0.0
    max_upload_mb: Annotated[int, Meta(ge=1, le=100, description="The server refuses larger uploads.")] = 10
    api_keys: Annotated[
        tuple[Annotated[str, Meta(min_length=16)], ...],
        Meta(description="Programs must send one of these keys; the page needs none."),
    ] = ()
    rate_limit: Annotated[
        int, Meta(ge=0, le=100_000, description="Requests per minute and client; 0 for no limit.")
    ] = 0
    trusted_proxies: Annotated[
        tuple[str, ...],
        Meta(
            description="Addresses or networks of proxies, such as 10.0.0.0/8: the server trusts their "
            "X-Forwarded-For and X-Forwarded-Proto."
        ),
    ] = ()
    metrics: Annotated[bool, Meta(description="Answer GET /metrics.")] = True
    allow_url: Annotated[
        bool, Meta(description="Fetch images by their links: GET /analyze?url= and the form field url.")
    ] = False
    cors_origins: Annotated[
        tuple[Annotated[str, Meta(pattern=ORIGIN)], ...],
        Meta(description='Sites whose scripts may read the answers: "https://example.com", or "*" for all.'),
    ] = ()
    frame_origins: Annotated[
        tuple[Annotated[str, Meta(pattern=ORIGIN)], ...],
        Meta(
            description='Sites that may show the page in a frame: "https://example.com", or "*" for all. '
            "Hugging Face may show a Space of its own."
        ),
    ] = ()
    log_format: Annotated[LogFormat, Meta(description='"json" writes one object per line.')] = "text"
    lang: Annotated[
        Literal["auto", "ar", "de", "en", "es", "fr", "hi", "ja", "pt", "zh"],
        Meta(description='The language of the page; "auto" is that of the browser, with a switch.'),
    ] = "auto"
    title: Annotated[str, Meta(min_length=1, max_length=200, description="The title of the page.")] = (
        "What's in this photo?"
    )
    description: Annotated[
        str, Meta(max_length=1000, description="The text below the title; by default a list of the classes.")
    ] = ""
    color: Annotated[
        str, Meta(pattern="^#[0-9a-fA-F]{6}$", description="The color of the page's buttons and bars.")
    ] = "#1f5fbf"
    samples: Annotated[
        str, Meta(description="A folder of up to 6 photos to try on the page. The demo has its own.")
    ] = ""
    public_url: Annotated[
        str,
        Meta(
            pattern=r"^(https?://[^/\s?#]+(/[A-Za-z0-9._~-]+)*/?)?$",
            description="The page's address, for previews of links to it. A proxy may show it below a path: "
            "https://example.com/classify.",
        ),
    ] = ""
    feedback: Annotated[
        str,
        Meta(
            description="Visitors may send a photo with its right class: to this folder, or this https "
            "address. Off by default."
        ),
    ] = ""
    feedback_days: Annotated[
        int, Meta(ge=1, le=3650, description="Days for which the folder keeps a photo that was sent.")
    ] = 90
    show_proof: Annotated[
        bool,
        Meta(description="Beside an unsure answer, show the photos of the proof that are most alike."),
    ] = False
    # not a setting itself: the names that the file or the environment sets, also where they set the default
    explicit: frozenset[str] = frozenset()

    def is_set(self, name: str) -> bool:
        """Return whether the file or the environment sets a setting."""
        return name in self.explicit or getattr(self, name) != DEFAULTS[name]


MAX_FEEDBACK: Final = 2000  # photos in the folder of `feedback`
PLACES: Final = ("model_url", "proof_url", "samples", "feedback")  # links or paths
HINTS: Final = {
    name: hint
    for name, hint in typing.get_type_hints(Settings, include_extras=True).items()
    if typing.get_origin(hint) is Annotated
}

DEFAULTS: Final = {field.name: field.default for field in fields(Settings)}


def check(settings: Settings) -> None:
    """Check the rules that types cannot express. Raises SettingsError."""
    if settings.engine not in ENGINES:
        raise SettingsError(f"engine is {settings.engine!r}; one of {', '.join(ENGINES)} was expected.")
    for setting, names in (("class", settings.classes), ("label", settings.labels)):
        if twice := [name for index, name in enumerate(names) if name in names[:index]]:
            raise SettingsError(
                f"The {setting} '{twice[0]}' is listed twice; each {setting} is listed once, in notebook "
                "order."
            )
    for network in settings.trusted_proxies:
        try:
            ipaddress.ip_network(network)
        except ValueError:
            raise SettingsError(
                f"trusted_proxies has {network!r}; an address or a network was expected, such as 10.0.0.0/8."
            ) from None
    _check_together(settings)
    finite = all(map(math.isfinite, settings.mean + settings.std))
    if (
        not finite
        or min(settings.std) <= 0
        or (len(settings.mean), len(settings.std)) not in ((1, 1), (3, 3))
    ):
        raise SettingsError(
            f"mean is {list(settings.mean)} and std {list(settings.std)}; three finite numbers were "
            "expected, or one for gray photos, and positive ones in std."
        )


def _check_together(settings: Settings) -> None:
    """Check the settings that need, or exclude, another one. Raises SettingsError."""
    if settings.feedback.lower().startswith("http://"):
        raise SettingsError(
            f"feedback is {settings.feedback}, where anybody on the way could see the photos. Use https."
        )
    if settings.feedback and settings.multi_label:
        raise SettingsError(
            "feedback has one class for each photo, but multi_label has several. Remove one of the two."
        )
    if settings.show_proof and not settings.proof_url:
        raise SettingsError("show_proof shows the photos of a proof: set proof_url, or remove show_proof.")
    if settings.unfamiliar_below and not settings.proof_url:
        raise SettingsError(
            f"unfamiliar_below is {settings.unfamiliar_below}, but familiarity needs the photos of a proof: "
            "set proof_url, or remove unfamiliar_below."
        )
