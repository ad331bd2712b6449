"""Types that several packages share."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]  # by their names in the state dict
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Size = tuple[int, int]  # height, width
