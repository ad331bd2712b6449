"""Downloads: checkpoints and images."""
