"""Which of the instances a run goes to."""

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from pdserve.engines.openvino import cpu_streams


class Named:
    """An instance that notes who runs, and waits until it may end."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()
        self.most: dict[str, int] = {}
        self._now: dict[str, int] = {}
        self._lock = threading.Lock()

    def instance(self, name: str) -> Any:
        def run(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
            with self._lock:
                self.runs.append(name)
                self._now[name] = self._now.get(name, 0) + 1
                self.most[name] = max(self.most.get(name, 0), self._now[name])
            self.entered.release()
            assert self.go.wait(10)
            with self._lock:
                self._now[name] -= 1
            if "fail" in feeds:
                raise RuntimeError("told to")
            return feeds

        return run


def test_a_run_that_is_alone_gets_all_and_others_share() -> None:
    named = Named()
    first, second = cpu_streams(named.instance("alone"), [named.instance("a"), named.instance("b")])
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first, {"x": np.zeros(1)})
        assert named.entered.acquire(timeout=10)
        two = pool.submit(second, {"x": np.ones(1)})
        assert named.entered.acquire(timeout=10)
        named.go.set()
        assert (one.result()["x"][0], two.result()["x"][0]) == (0, 1)
    assert named.runs == ["alone", "b"]
    second({})
    assert named.runs[-1] == "alone"


def test_no_instance_ever_has_two_runs() -> None:
    named = Named()
    named.go.set()
    both = cpu_streams(named.instance("alone"), [named.instance("a"), named.instance("b")])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda each: [each({}) for _ in range(500)], both))
    assert set(named.most.values()) == {1}


def test_a_failed_run_leaves_its_place() -> None:
    named = Named()
    named.go.set()
    (only,) = cpu_streams(named.instance("alone"), [named.instance("a")])
    with pytest.raises(RuntimeError):
        only({"fail": np.zeros(1)})
    only({})
    assert named.runs == ["alone", "alone"]


def test_models_share_the_cores() -> None:
    named, other = Named(), Named()
    other.go.set()
    (one,) = cpu_streams(named.instance("alone"), [named.instance("a")])
    (two,) = cpu_streams(other.instance("alone"), [other.instance("a")])
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(one, {})
        assert named.entered.acquire(timeout=10)
        two({})
        named.go.set()
        running.result()
    two({})
    assert (named.runs, other.runs) == (["alone"], ["a", "alone"])
