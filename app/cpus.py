"""The number of cores that this process may use: its affinity mask and the quota of its cgroup.

`os.cpu_count` and `os.process_cpu_count` do not see quotas. In a container with half a core on a machine of
64 they lead to 64 threads, which the kernel throttles for most of each tenth of a second.
"""

import math
import os
from pathlib import Path
from typing import Final

ROOT: Final = Path("/")


def usable_cores(root: Path = ROOT) -> int:
    """Return the number of cores, at least 1; a quota of 1.5 counts as 2. `root` holds /proc and /sys."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(affinity, _quota(root))))


def _quota(root: Path) -> float:
    """Return the cores that this cgroup and its parents allow; infinity without a limit.

    Version 2 has "quota period" or "max period" in cpu.max. Version 1 has a file for each, and -1 for none
    (kernel: Documentation/admin-guide/cgroup-v2.rst, scheduler/sched-bwc.rst).
    """
    allowed = math.inf
    for folder in _groups(root):
        quota, period = (
            _words(folder / "cpu.max")
            or (
                *_words(folder / "cpu.cfs_quota_us"),
                *_words(folder / "cpu.cfs_period_us"),
            )
            or ("max", "")
        )
        if quota.isdecimal() and period.isdecimal() and int(period):
            allowed = min(allowed, int(quota) / int(period))
    return allowed


def _groups(root: Path) -> list[Path]:
    """Return the folders of the cgroups of this process, from its own up to the topmost."""
    folders = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            top = root / "sys/fs/cgroup" / controllers
            # in a container the path may be the host's, while the folder at the top is the container's
            folders += [top / path.lstrip("/"), *(top / path.lstrip("/")).parents]
    return [folder for folder in folders if folder.is_relative_to(root / "sys/fs/cgroup")]


def _words(path: Path) -> tuple[str, ...]:
    return tuple(_text(path).split())


def _text(path: Path) -> str:
    """Return the text of a file, or "" if it is missing or unreadable, since then it sets no limit."""
    try:
        return path.read_text()
    except OSError:
        return ""
