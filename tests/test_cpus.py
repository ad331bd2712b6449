"""How many cores: control groups laid out as the kernel lays them out."""

import os
from pathlib import Path

import pytest

from app.cpus import usable_cores

MINE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
FEW = pytest.mark.skipif(MINE == 1, reason="on one core no quota makes fewer")


def machine(root: Path, **files: str) -> Path:
    """A root folder with these files, whose names have "__" for "/" and "_dot_" for "."."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_a_quota_all_cores_of_the_process_count(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == MINE  # no /proc, no /sys: another system
    files = {"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu_dot_max": "max 100000\n"}
    assert usable_cores(machine(tmp_path, **files)) == MINE


@FEW
@pytest.mark.parametrize("quota", ["50000 100000", "100000 100000", "20000 20000"])
def test_a_container_with_a_core_or_less_has_one(tmp_path: Path, quota: str) -> None:
    files = {"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu_dot_max": quota}
    assert usable_cores(machine(tmp_path, **files)) == 1


@FEW
def test_a_part_of_a_core_counts_as_one_more(tmp_path: Path) -> None:
    files = {"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu_dot_max": "150000 100000"}
    assert usable_cores(machine(tmp_path, **files)) == 2


@FEW
def test_the_quota_of_a_group_further_up_counts_too(tmp_path: Path) -> None:
    files = {
        "proc__self__cgroup": "0::/pods/mine\n",
        "sys__fs__cgroup__pods__cpu_dot_max": "100000 100000",
        "sys__fs__cgroup__pods__mine__cpu_dot_max": "max 100000",
    }
    assert usable_cores(machine(tmp_path, **files)) == 1


@FEW
@pytest.mark.parametrize(("quota", "cores"), [("50000", 1), ("-1", MINE)])
def test_version_1_of_control_groups_is_understood(tmp_path: Path, quota: str, cores: int) -> None:
    files = {
        "proc__self__cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n",
        "sys__fs__cgroup__cpu,cpuacct__cpu_dot_cfs_quota_us": quota,
        "sys__fs__cgroup__cpu,cpuacct__cpu_dot_cfs_period_us": "100000",
    }
    assert usable_cores(machine(tmp_path, **files)) == cores
