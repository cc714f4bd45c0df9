import json

import numpy as np
import pytest

from pdserve.tools.bench import Load
from pdserve.tools.bench.run import Batches, ServerSide, Stage, summary_ms
from tests.tools.bench.runs import a_run


def test_percentiles_of_known_values() -> None:
    """0 to 100 ms in steps of 1: the percentiles are their own numbers."""
    values = np.random.default_rng(1).permutation(101) / 1000
    assert summary_ms(values) == pytest.approx(
        {"mean": 50, "p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}
    )


def test_percentiles_between_values() -> None:
    assert summary_ms(np.array([0.010, 0.020])) == pytest.approx(
        {"mean": 15, "p50": 15, "p90": 19, "p95": 19.5, "p99": 19.9, "max": 20}
    )
    assert summary_ms(np.array([0.007])) == pytest.approx(
        dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"), 7)
    )
    assert summary_ms(np.array([])) is None


def test_throughput_is_of_good_answers() -> None:
    run = a_run([0.1] * 10, batch=4, errors={"503": 90})
    assert run.requests_per_s == 5
    assert run.images_per_s == 20
    assert run.failed == 90


def test_as_json() -> None:
    server = ServerSide((Stage("infer", "tiny", 1.23456, 7),), (Batches("tiny", 2.5, 4),))
    run = a_run(batch=2, errors={"timeout": 1, "503 overloaded": 2}, examples={"timeout": "x"}, server=server)
    content = json.loads(json.dumps(run.to_json()))
    assert content == {
        "route": "v1",
        "url": "http://127.0.0.1:1",
        "mode": "closed",
        "clients": 8,
        "rate": None,
        "arrivals": None,
        "batch": 2,
        "started": "1970-01-01T00:00:00.000+00:00",
        "seconds": 2.0,
        "answers": 3,
        "requests_per_s": 1.5,
        "images_per_s": 3.0,
        "latency_ms": {"mean": 20.0, "p50": 20.0, "p90": 28.0, "p95": 29.0, "p99": 29.8, "max": 30.0},
        "errors": {"timeout": 1, "503 overloaded": 2},
        "error_examples": {"timeout": "x"},
        "unsent": 0,
        "in_flight_at_end": 0,
        "generator": {"cpu_s": 0.006, "cpu_ms_per_request": 1.0, "lag_p99_ms": None},
        "server": {
            "stages": [{"stage": "infer", "model": "tiny", "mean_ms": 1.235, "count": 7}],
            "batches": [{"model": "tiny", "mean_images": 2.5, "count": 4}],
        },
        "interrupted": False,
    }


def test_an_open_loop_as_json() -> None:
    content = a_run([], load=Load(rate=2.5, arrivals="poisson"), lag_s=0.0015, unsent=3).to_json()
    assert (content["mode"], content["clients"], content["rate"]) == ("open", None, 2.5)
    assert content["arrivals"] == "poisson"
    assert content["latency_ms"] is None
    assert content["generator"]["lag_p99_ms"] == 1.5
    assert content["generator"]["cpu_ms_per_request"] is None
    assert content["unsent"] == 3


def test_loads_in_words() -> None:
    assert [str(Load(clients=1)), str(Load(clients=64)), str(Load(rate=2.5)), str(Load(rate=100.0))] == [
        "1 client",
        "64 clients",
        "2.5/s",
        "100/s",
    ]
