"""Turns, closing and errors, over instances that the test can hold."""

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pdserve.engines.base import LoadedModel, LoadRequest, Options
from pdserve.engines.device import Device
from pdserve.engines.runner import Engine, summary
from pdserve.errors import ClosedError, EngineError
from pdserve.formats.model_files import find_model_files
from pdserve.formats.program import Program, Signature, TensorSpec
from pdserve.formats.prototxt import ModelConfig, Variable
from pdserve.formats.serving_model import ServingModel
from pdserve.vision.types import Array
from tests.engines.models import PROBE, warm_up

FEEDS = {"in": np.ones((1, 2), np.float32)}


class Gate:
    """An instance that waits in its run until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.seen: list[dict[str, tuple[int, ...]]] = []

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.seen.append({name: array.shape for name, array in feeds.items()})
        self.entered.release()
        assert self.open.wait(10)
        return {"y": feeds["x"] * 2, "unasked": feeds["x"]}


def runner(*instances: object, shape: tuple[int, ...] = (-1, 2)) -> Engine:
    config = ModelConfig((Variable("x", "in", "float32", ()),), (Variable("y", "out", "float32", ()),))
    spec = TensorSpec("x", "float32", shape)
    program = Program(Signature((spec,), (TensorSpec("y", "float32", shape),)), frozenset(), ())
    model = ServingModel(PROBE, "gated", find_model_files(PROBE), config)
    request = LoadRequest(model, program, Device(), None, len(instances), "fp32", Options())
    return Engine("test", request, LoadedModel(instances, "gates"), "a test")  # type: ignore[arg-type]


def test_aliases_go_in_and_out() -> None:
    gate = Gate()
    gate.open.set()
    found = runner(gate).run(FEEDS)
    assert gate.seen == [{"x": (1, 2)}]
    assert found.keys() == {"out"}
    np.testing.assert_array_equal(found["out"], [[2, 2]])


def test_as_many_run_as_there_are_instances() -> None:
    gates = Gate(), Gate()
    engine = runner(*gates)
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(engine.run, FEEDS) for _ in range(3)]
        for gate in gates:
            assert gate.entered.acquire(timeout=10)
        assert not any(gate.entered.acquire(timeout=0.05) for gate in gates)  # the third waits
        for gate in gates:
            gate.open.set()
        for run in runs:
            assert run.result(10).keys() == {"out"}
    assert sum(len(gate.seen) for gate in gates) == 3


def test_close_waits_for_runs_and_turns_the_rest_away() -> None:
    gate = Gate()
    engine = runner(gate)
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(engine.run, FEEDS)
        assert gate.entered.acquire(timeout=10)
        waiting = pool.submit(engine.run, FEEDS)
        closing = pool.submit(engine.close)
        with pytest.raises(ClosedError):
            waiting.result(10)
        assert not closing.done()
        gate.open.set()
        assert running.result(10).keys() == {"out"}
        closing.result(10)
    engine.close()


def test_a_failed_run_gives_its_instance_back() -> None:
    calls: list[int] = []

    def fails_once(feeds: Mapping[str, Array]) -> dict[str, Array]:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("out of luck.")
        return {"y": feeds["x"]}

    engine = runner(fails_once)
    with pytest.raises(EngineError, match=r"^test failed to run gated: out of luck\.$"):
        engine.run(FEEDS)
    assert engine.run(FEEDS).keys() == {"out"}


def test_warm_up_fills_free_extents() -> None:
    gate = Gate()
    gate.open.set()
    warm_up(runner(gate, shape=(-1, 3, -1, -1)), batch=2, size=(48, 192))
    warm_up(runner(gate, shape=(-1, 3, -1, -1)))
    warm_up(runner(gate, shape=(1, -1)), batch=4)
    assert [seen["x"] for seen in gate.seen] == [(2, 3, 48, 192), (1, 3, 1, 1), (1, 1)]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "\n\n---\nC++ Traceback\n0 f()\n---\n(InvalidArgument) Bad shape.\n  [Hint: x]\n",
            "(InvalidArgument) Bad shape",
        ),
        (
            "In user code:\n\n\n    InvalidArgumentError: Bad.\n  [Hint: x]\n  [op]",
            "InvalidArgumentError: Bad",
        ),
        ("Exception from a.cpp:1:\nCheck 'x' failed\nModel can't be parsed\n\n", "Model can't be parsed"),
        ("[ONNXRuntimeError] : 1 : FAIL : no", "[ONNXRuntimeError] : 1 : FAIL : no"),
        ("", "ValueError"),
    ],
    ids=["paddle", "paddle 3", "openvino", "onnx", "empty"],
)
def test_summary(text: str, line: str) -> None:
    assert summary(ValueError(text)) == line
