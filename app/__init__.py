"""fastai-now: put a fastai image classifier online."""

import os

# Read by numpy's OpenBLAS when it is loaded. Photos are computed side by side on threads of our own; threads
# within a product of small matrices wait for one another: on busy cores up to 59 ms instead of 0.04 ms.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__version__ = "0.2.0"
