"""`python -m app status`: the applications of a cluster, their links, and the replicas of their versions."""

import argparse
import json

from app.cluster.member import connected
from app.cluster.node import NodeFolder


def run(options: argparse.Namespace) -> int:
    """Print the state of the cluster, as text or as one JSON object."""
    folder = NodeFolder(options.folder)
    with connected(folder.find(), folder.node) as cluster:
        found = cluster.status()
    if options.json:
        print(json.dumps(found))
        return 0
    for name, each in found["applications"].items():
        canary = f", {each['share']:.0%} to {each['canary']}" if each["canary"] else ""
        print(f"/{name}/ -> {each['model']}/{each['version']}{canary}")
    for name, each in found["versions"].items():
        states = ", ".join(f"{count} {state.lower()}" for state, count in each["replicas"].items()) or "none"
        print(f"{name}: replicas {states}; {each['wanted'][0]} to {each['wanted'][1]} wanted")
    print(f"machines: {', '.join(found['machines'])}")
    return 0
