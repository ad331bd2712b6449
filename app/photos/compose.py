"""The steps of a torchvision `Compose`, from the calls in it."""

from collections.abc import Iterable

from app.photos.resample import FILTERS
from app.photos.torchvision_steps import CenterCrop, TorchvisionResize
from app.photos.transforms import Statistics, Step
from app.photos.validation import Transform, placed, read_size, read_statistics


def read_compose(transforms: Iterable[Transform]) -> tuple[tuple[Step, ...], Statistics | None]:
    """The steps, and the statistics of Normalize, if there is one. Raises ValueError with a phrase."""
    steps: list[Step] = []
    statistics, tensor = None, False
    for transform in transforms:
        with placed(transform):
            if transform.name == "Normalize" and statistics is None and tensor:
                statistics = read_statistics(transform)
            elif transform.name in ("Resize", "CenterCrop") and not tensor:
                steps.append(_torchvision_step(transform))
            elif transform.name in ("ToTensor", "PILToTensor", "ToImage"):
                tensor = True
            elif transform.name not in ("ConvertImageDtype", "ToDtype"):
                raise ValueError(f"it stands {'behind' if tensor else 'before'} ToTensor")
    return tuple(steps), statistics


def _torchvision_step(transform: Transform) -> Step:
    given = transform.arguments
    size = given.get("size")
    if isinstance(size, list | tuple) and len(size) == 1:
        (size,) = size
    if transform.name == "CenterCrop":
        return CenterCrop(read_size(size))
    kind = given.get("interpolation", FILTERS.index("bilinear"))
    if not isinstance(kind, int) or not 0 <= kind < len(FILTERS):
        raise ValueError(f"the interpolation of Resize is {kind!r}")
    both = read_size(size)
    most = given.get("max_size")
    if most is not None and (isinstance(size, list | tuple) or not isinstance(most, int) or most <= both[0]):
        raise ValueError(f"the max_size of Resize is {most!r}")
    return TorchvisionResize(both if isinstance(size, list | tuple) else both[0], FILTERS[kind], most)
