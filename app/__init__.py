"""fastai-now: put a fastai image classifier online."""

__version__ = "0.1.0"
