"""The bytes of a checkpoint become named arrays, without running a pickle."""
