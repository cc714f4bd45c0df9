"""What this process may use: cores by affinity and quota, memory by limit, in either version of cgroups."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from pdserve.machine import cores, memory_limit

ALLOWED = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
GROUPS = "sys/fs/cgroup"


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return root


def v1(folder: str, quota: str, period: str = "100000\n") -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": period}


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of eight cores."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, 8),
        ({f"{GROUPS}/cpu.max": "max 100000\n"}, 8),
        ({f"{GROUPS}/cpu.max": "200000 100000\n"}, 2),
        ({f"{GROUPS}/cpu.max": "150000 100000\n"}, 2),  # half a core is one more thread's
        ({f"{GROUPS}/cpu.max": "10000 100000\n"}, 1),
        ({f"{GROUPS}/cpu.max": "6400000 100000\n"}, 8),
        ({f"{GROUPS}/cpu.max": "50000 20000\n"}, 3),
        ({f"{GROUPS}/cpu.max": ""}, 8),
        ({f"{GROUPS}/cpu.max": "what is this\n"}, 8),
        ({f"{GROUPS}/cpu.max": "0 0\n"}, 8),
        # Of its own group, and of one above it.
        ({"proc/self/cgroup": "0::/a/b\n", f"{GROUPS}/a/b/cpu.max": "300000 100000"}, 3),
        ({"proc/self/cgroup": "0::/a/b\n", f"{GROUPS}/a/cpu.max": "100000 100000"}, 1),
        ({"proc/self/cgroup": "0::/a\n", f"{GROUPS}/b/cpu.max": "100000 100000"}, 8),
        (v1(f"{GROUPS}/cpu", "-1\n"), 8),
        (v1(f"{GROUPS}/cpu", "250000\n"), 3),
        (v1(f"{GROUPS}/cpu,cpuacct", "100000\n"), 1),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/x\n", **v1(f"{GROUPS}/cpu,cpuacct/x", "400000")}, 4),
        ({f"{GROUPS}/cpu/cpu.cfs_quota_us": "100000\n"}, 8),  # no period
    ],
)
def test_a_containers_quota_bounds_the_cores(tmp_path: Path, files: Mapping[str, str], found: int) -> None:
    assert cores(write(tmp_path, files)) == found


def test_affinity_bounds_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3}, raising=False)
    assert cores(write(tmp_path, {f"{GROUPS}/cpu.max": "200000 100000\n"})) == 1


def test_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 1 <= cores() <= ALLOWED


MEMORY = f"{GROUPS}/memory"


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/\n", {f"{GROUPS}/memory.max": "1000000\n"}, 1_000_000),
        ("0::/a/b\n", {f"{GROUPS}/a/b/memory.max": "max\n", f"{GROUPS}/a/memory.max": "2000\n"}, 2000),
        ("0::/outside/of/the/container\n", {f"{GROUPS}/memory.max": "3000\n"}, 3000),
        ("5:cpu,memory:/x\n0::/\n", {f"{MEMORY}/x/memory.limit_in_bytes": "4000\n"}, 4000),
        ("5:memory:/x\n", {f"{MEMORY}/memory.limit_in_bytes": "5000\n"}, 5000),
        ("4:memory:/x\n", {f"{MEMORY}/x/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("0::/\n", {f"{GROUPS}/memory.max": "0\n"}, None),
        ("0::/../../..\nno line\n:\n", {f"{GROUPS}/memory.max": "many\n"}, None),
        ("", {}, None),
    ],
)
def test_a_containers_limit(groups: str, files: Mapping[str, str], limit: int | None, tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/cgroup": groups, **files})
    assert memory_limit(tmp_path) == (limit or memory_limit(tmp_path / "nothing"))


def test_the_machines_memory() -> None:
    assert memory_limit() > 100 << 20
