"""torchvision's transforms. Lines in parentheses are of torchvision 0.28 transforms/functional.py."""

from PIL import Image

from app.photos.resample import COARSE, Filter, Resized, crop_or_pad
from app.photos.steps import WHOLE, PictureStep, Shown, as_text, centered
from app.types import Size


class TorchvisionResize(PictureStep, frozen=True, tag="torchvision.Resize"):
    """torchvision's `Resize` (353-390): squish to (height, width), or make the shorter side `size` and the
    longer one at most `max_size`.
    """

    size: int | Size
    resample: Filter = "bilinear"
    max_size: int | None = None

    def __str__(self) -> str:
        """See Step: here two equal sides are not one."""
        more = (
            ""
            if self.resample == "bilinear"
            else f", interpolation=InterpolationMode.{self.resample.upper()}"
        )
        more += "" if self.max_size is None else f", max_size={self.max_size}"
        return f"Resize({self.size}{more})"

    def _target(self, size: Size) -> Size:
        if isinstance(self.size, tuple):
            return self.size
        shorter, longer = self.size, int(self.size * max(size) / min(size))
        if self.max_size is not None and longer > self.max_size:
            shorter, longer = int(self.max_size * shorter / longer), self.max_size
        return (longer, shorter) if size[0] > size[1] else (shorter, longer)

    def __call__(self, image: Image.Image, resized: Resized) -> Image.Image:
        """See PictureStep."""
        return resized(image, self._target((image.height, image.width)), self.resample)

    def shown(self, size: Size) -> Shown:
        """See Step."""
        return WHOLE, self._target(size)

    @property
    def least(self) -> Size | None:
        """See Step."""
        both = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        return None if self.resample in COARSE else both


class CenterCrop(PictureStep, frozen=True, tag="torchvision.CenterCrop"):
    """torchvision's `CenterCrop` (556-594): padded with black where the picture is smaller."""

    size: Size

    def __str__(self) -> str:
        """See Step."""
        return f"CenterCrop({as_text(self.size)})"

    def __call__(self, image: Image.Image, resized: Resized) -> Image.Image:
        """See PictureStep."""
        there, wanted = (image.height, image.width), self.size
        padded = [max(a, b) for a, b in zip(there, wanted, strict=True)]
        # black before the picture, then the rounding of what is cut, which goes to even numbers
        before = [(b - a) // 2 if b > a else 0 for a, b in zip(there, wanted, strict=True)]
        top, left = (round((a - b) / 2.0) - c for a, b, c in zip(padded, wanted, before, strict=True))
        return crop_or_pad(image, wanted, left, top, "zeros")

    def shown(self, size: Size) -> Shown:
        """See Step."""
        return centered(size, self.size), self.size
