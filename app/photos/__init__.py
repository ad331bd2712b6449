"""The bytes of a photo become pixels, as fastai makes them."""
