"""fastai-now: put a fastai image classifier online."""

import os

# numpy's OpenBLAS reads it when it is loaded. Our own threads compute photos side by side. OpenBLAS's threads
# wait for one another inside a product of small matrices: on busy cores up to 59 ms instead of 0.04 ms.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__version__ = "0.2.0"
