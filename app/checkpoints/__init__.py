"""A file's bytes to named arrays, without running a pickle."""
