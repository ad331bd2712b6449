"""A machine as a member of the cluster: its Ray node, the connection to it, and the links for its front."""

import argparse
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

from app.catalog import Catalog
from app.cluster.node import NodeFolder, running_node

if TYPE_CHECKING:
    from app.cluster.front import Links


@contextlib.contextmanager
def member(options: argparse.Namespace, read: Callable[[], Catalog]) -> Iterator["Links"]:
    """Run a Ray node and yield the links of its cluster; the head applies what `read` returns first.

    `options` are those of the command `cluster`. Raises StartupError.
    """
    folder = NodeFolder(options.folder)
    folder.make()
    folder.take_token(options.token_file)
    folder.set_environment(options.node)
    with running_node(folder, options.node, options.join, options.node_port) as address:
        with connected(address, options.node) as cluster:
            from app.cluster.front import Links

            if not options.join:
                cluster.apply(read())
            reload = partial(os.kill, os.getpid(), signal.SIGHUP)  # as for another settings file
            with contextlib.closing(Links(reload)) as links:
                yield links


@contextlib.contextmanager
def connected(address: str, node: str) -> Iterator[ModuleType]:
    """Connect to the cluster at `address` from the machine `node`, and yield the module `ray_serve`."""
    from app.cluster import ray_serve  # Ray reads the environment when it is imported

    ray_serve.connect(address, node)
    try:
        yield ray_serve
    finally:
        ray_serve.disconnect()
