import pytest

from pdserve.services.telemetry.metrics import Metrics
from pdserve.tools.bench.run import Batches, Stage
from pdserve.tools.bench.server import between, read_counters


def text(metrics: Metrics) -> str:
    return metrics.exposition()[0].decode()


def test_between_two_readings_of_a_server() -> None:
    metrics = Metrics()
    metrics.stage("infer", 100.0, "tiny")  # before the run: a first, slow one
    metrics.batch("tiny", 1)
    metrics.stage("decode", 0.001)
    before = read_counters(text(metrics))
    for seconds in (0.010, 0.030):
        metrics.stage("infer", seconds, "tiny")
    for size in (2, 4, 3):
        metrics.batch("tiny", size)
    metrics.stage("queue", 0.005, "tiny")  # for the first time
    server = between(before, read_counters(text(metrics)))
    assert server is not None
    assert [(s.stage, s.model, s.count) for s in server.stages] == [
        ("queue", "tiny", 1),
        ("infer", "tiny", 2),
    ]
    assert [s.mean_ms for s in server.stages] == pytest.approx([5, 20])
    assert server.batches == (Batches("tiny", 3.0, 3),)


def test_stages_come_in_the_order_of_the_way() -> None:
    metrics = Metrics()
    before = read_counters(text(metrics))
    for stage in ("search", "new one", "decode", "infer"):
        metrics.stage(stage, 0.001)
    server = between(before, read_counters(text(metrics)))
    assert server is not None
    assert [s.stage for s in server.stages] == ["decode", "infer", "search", "new one"]
    assert server.stages[0] == Stage("decode", "", pytest.approx(1), 1)


def test_a_server_that_did_nothing_or_restarted() -> None:
    metrics = Metrics()
    metrics.stage("infer", 0.010, "tiny")
    metrics.stage("infer", 0.010, "tiny")
    reading = read_counters(text(metrics))
    assert between(reading, reading) is None
    restarted = Metrics()
    restarted.stage("infer", 0.010, "tiny")
    assert between(reading, read_counters(text(restarted))) is None


def test_the_numbers_of_another_program() -> None:
    assert read_counters('# TYPE up gauge\nup{job="x"} 1\n') == {}
    assert read_counters("") == {}


def test_what_is_no_exposition() -> None:
    with pytest.raises(ValueError):
        read_counters("<html><body>404</body></html>\n")
