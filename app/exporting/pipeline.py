"""The steps of a notebook as ONNX nodes: from `image` to `pixels`, the input of a network.

Each step computes what the class of the same name in `app.photos` computes, and is tested against it.
"""

from typing import Final

import numpy as np

from app.engines.photo_file import IMAGE
from app.exporting.picture_steps import picture_nodes
from app.exporting.pixel_steps import pixel_nodes
from app.exporting.values import Value, Writer
from app.photos.steps import PixelStep
from app.photos.transforms import Preprocess

PIXELS: Final = "pixels"  # (1, C, height, width) float32
GRAY: Final = (19595, 38470, 7471)  # Pillow's shares of 65536 (13.0.0 src/libImaging/Convert.c, L24)


def write_pipeline(writer: Writer, preprocess: Preprocess, channels: int) -> None:
    """Write the nodes from IMAGE, (height, width, 3 or 4) uint8, to PIXELS, for a network of `channels`."""
    image = writer.input(IMAGE, np.uint8)
    planes = image.sliced((2, 0, 3)).transposed(2, 0, 1)  # without alpha, which fastai drops
    if preprocess.mode == "L":
        planes = _gray(planes)
    for step in preprocess.steps:
        if isinstance(step, PixelStep):
            in_levels = planes.dtype == np.uint8
            planes = pixel_nodes(step, planes)
            planes = planes / 255 if in_levels else planes
        elif planes.dtype == np.uint8:
            planes = picture_nodes(step, planes, newest=preprocess.newest_pillow)
    pixels = planes.to(np.float32) / 255 if planes.dtype == np.uint8 else planes
    mean, std = (
        np.array(numbers, np.float32)[:, np.newaxis, np.newaxis]
        for numbers in (preprocess.mean, preprocess.std)
    )
    pixels = (pixels - mean) / std
    if preprocess.mode == "L" and len(mean) < channels:
        pixels = writer.concat([pixels] * channels, axis=0)  # the weights of the other two are zero
    writer.add("Unsqueeze", pixels, writer.constant([0], np.int64), output=PIXELS)


def _gray(planes: Value) -> Value:
    """(3, H, W) levels -> (1, H, W); the sums stay below 2**24, so float32 is exact."""
    shares = np.array(GRAY, np.float32)[:, np.newaxis, np.newaxis]
    total = (planes.to(np.float32) * shares).reduced("ReduceSum", 0, keep=True)
    return ((total + 0x8000) / 0x10000).floor().to(np.uint8)
