"""The folder that answers without Python: a model from photo to probabilities, and programs that use it."""
