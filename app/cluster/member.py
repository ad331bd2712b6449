"""A machine as a member of the cluster: its Ray node, and the links for its front."""

import argparse
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
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
        from app.cluster import ray_serve  # Ray reads the environment when it is imported
        from app.cluster.front import Links

        ray_serve.connect(address, options.node)
        try:
            if not options.join:
                ray_serve.apply(read())
            links = Links(lambda: os.kill(os.getpid(), signal.SIGHUP))  # as for another settings file
            try:
                yield links
            finally:
                links.close()
        finally:
            ray_serve.disconnect()
