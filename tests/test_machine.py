"""What this process may use: cores by affinity and quota, memory by limit, in either version of cgroups."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pdserve.machine import bound_threads, cores, memory_limit

ALLOWED = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
GROUPS = "sys/fs/cgroup"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


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


OWN = "/docker/a /sys/fs/cgroup/cpu cgroup cpu,cpuacct"
BOTH = ["/ /sys/fs/cgroup/cpu cgroup cpu", "/ /sys/fs/cgroup/unified cgroup2 -"]


def mounted(*lines: str) -> dict[str, str]:
    """``/proc/self/mountinfo``; each line is GROUP POINT TYPE OPTIONS."""
    form = "31 23 0:28 {} {} rw,relatime shared:9 - {} cgroup rw,{}\n"
    return {"proc/self/mountinfo": "".join(form.format(*line.split(" ")) for line in lines)}


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "found"),
    [
        # A container without a name space for groups: it is shown its own group, and is in one below.
        ("4:cpu,cpuacct:/docker/a/b", [OWN], v1(f"{GROUPS}/cpu/b", "200000"), 2),
        ("4:cpu,cpuacct:/docker/a/b", [OWN], v1(f"{GROUPS}/cpu", "300000"), 3),
        ("0::/pod/x/y", ["/pod/x /sys/fs/cgroup cgroup2 -"], {f"{GROUPS}/y/cpu.max": "100000 100000"}, 1),
        # Mounted elsewhere, with a space; and both versions beside each other.
        ("1:cpu:/x", [r"/ /my\040groups/cpu cgroup cpu"], v1("my groups/cpu/x", "250000"), 3),
        ("1:cpu:/x\n0::/x", BOTH, v1(f"{GROUPS}/cpu/x", "50000"), 1),
        ("0::/x", BOTH[1:], {f"{GROUPS}/unified/x/cpu.max": "400000 100000"}, 4),
        # Of another container, of another controller, and what is no line.
        ("1:cpu:/docker/b", ["/docker/a /mnt/a cgroup cpu"], v1("mnt/a", "100000"), 8),
        ("1:cpu:/x", ["/ /mnt/memory cgroup memory"], v1("mnt/memory/x", "100000"), 8),
        ("1:cpu:/x", ["/ /mnt/cpu tmpfs cpu"], v1("mnt/cpu/x", "100000"), 8),
    ],
)  # fmt: skip
def test_where_groups_are_mounted_says_which_quota_holds(
    tmp_path: Path, groups: str, mounts: list[str], files: Mapping[str, str], found: int
) -> None:
    write(tmp_path, {"proc/self/cgroup": f"{groups}\n", **mounted(*mounts), **files})
    assert cores(tmp_path) == found


def test_the_memory_of_a_group_below_the_one_that_is_shown(tmp_path: Path) -> None:
    files = {
        f"{GROUPS}/memory/b/memory.limit_in_bytes": "6000\n",
        "proc/self/cgroup": "5:memory:/docker/a/b\n",
    }
    write(tmp_path, files | mounted("/docker/a /sys/fs/cgroup/memory cgroup memory"))
    assert memory_limit(tmp_path) == 6000


def test_mountinfo_of_any_form_is_read(tmp_path: Path) -> None:
    text = "\n - \n1 2 3 - cgroup\n1 2 3 / /x rw - cgroup2\n1 2 3 4 5 6 - cgroup a cpu\n"
    write(tmp_path, {"proc/self/cgroup": "1:cpu:/x\n0::/y\n", "proc/self/mountinfo": text})
    assert cores(tmp_path) == 8


@pytest.mark.parametrize(
    ("quota", "before", "after"),
    [
        ("150000 100000", {}, dict.fromkeys(THREADS, "2")),
        ("150000 100000", {"OMP_NUM_THREADS": "4"}, dict.fromkeys(THREADS, "2") | {"OMP_NUM_THREADS": "4"}),
        ("max 100000", {}, {}),
        ("800000 100000", {}, {}),
    ],
)
def test_libraries_are_told_what_a_quota_leaves(
    tmp_path: Path, quota: str, before: dict[str, str], after: dict[str, str]
) -> None:
    write(tmp_path, {f"{GROUPS}/cpu.max": quota})
    bound_threads(before, tmp_path)
    assert before == after


def test_a_command_tells_them_before_they_are_loaded(tmp_path: Path) -> None:
    """In a process of its own, which a quota of one core is made to seem to hold."""
    code = (
        "import os, sys\n"
        "os.sched_getaffinity = lambda _: set(range(8))\n"
        "from pdserve import machine\n"
        "machine._quotas = lambda root: [1.0]\n"
        "from pdserve.commands.table import COMMANDS, LazyCommand\n"
        "assert 'numpy' not in sys.modules\n"
        "LazyCommand('doctor', COMMANDS['doctor']).load()\n"
        "print(os.environ['OMP_NUM_THREADS'])\n"
    )
    environ = {name: text for name, text in os.environ.items() if name not in THREADS}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"


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
