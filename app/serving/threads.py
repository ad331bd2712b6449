"""The threads of a process, which all of its models share."""

from concurrent.futures import ThreadPoolExecutor

from app.cpus import usable_cores
from app.photos.pool import Decoder


class Threads:
    """The threads on which all models decode, within one bound on pixels, and compute, one for each core.

    To be closed.
    """

    def __init__(self) -> None:
        self.decoder = Decoder()
        self.engine = ThreadPoolExecutor(usable_cores(), thread_name_prefix="engine")

    def close(self) -> None:
        """End the threads."""
        self.engine.shutdown()
        self.decoder.close()
