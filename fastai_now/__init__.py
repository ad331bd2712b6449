"""fastai-now as an installed package: its command, and for notebooks, its page in a cell."""
