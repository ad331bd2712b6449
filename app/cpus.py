"""How many processor cores this process may use: the affinity mask and the quota of its control group.

`os.cpu_count` and `os.process_cpu_count` do not see quotas: in a container with half a core on a machine of
64 they would start 64 threads, which the kernel then stops for most of each tenth of a second.
"""

import math
import os
from pathlib import Path
from typing import Final

ROOT: Final = Path("/")


def usable_cores(root: Path = ROOT) -> int:
    """At least 1; a quota of 1.5 cores counts as 2. `root` is where /proc and /sys are."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(affinity, _quota(root))))


def _quota(root: Path) -> float:
    """The cores that the control groups allow, this one and those around it; infinite without a limit.

    Version 2 says "quota period" or "max period" in cpu.max, version 1 has a file for each, where -1 is no
    limit (kernel: Documentation/admin-guide/cgroup-v2.rst, scheduler/sched-bwc.rst).
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
    """The folders of the control groups that this process is in, from its own up to the topmost."""
    folders = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            top = root / "sys/fs/cgroup" / controllers
            # in a container the path may be that of the host, while the folder at the top is its own
            folders += [top / path.lstrip("/"), *(top / path.lstrip("/")).parents]
    return [folder for folder in folders if folder.is_relative_to(root / "sys/fs/cgroup")]


def _words(path: Path) -> tuple[str, ...]:
    return tuple(_text(path).split())


def _text(path: Path) -> str:
    """What the file says; nothing where it is not there or not ours to read: then it limits nothing."""
    try:
        return path.read_text()
    except OSError:
        return ""
