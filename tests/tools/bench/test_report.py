from pdserve.tools.bench import Load, report
from pdserve.tools.bench.run import Batches, ServerSide, Stage
from tests.tools.bench.runs import a_run


def test_latencies() -> None:
    columns, rows = report.latencies([a_run([0.010, 0.020], batch=3), a_run([], load=Load(rate=5))])
    first, second = (dict(zip(columns, row, strict=True)) for row in rows)
    assert (first["route"], first["load"], first["failed"]) == ("v1", "8 clients", 0)
    assert (first["images/s"], first["requests/s"]) == (3.0, 1.0)
    assert round(float(str(first["p50 ms"])), 6) == 15
    assert (second["load"], second["p99 ms"]) == ("5/s", None)


def test_stages_of_one_model_and_of_several() -> None:
    one = ServerSide((Stage("decode", "", 1, 9), Stage("infer", "tiny", 2, 9)), (Batches("tiny", 4, 2),))
    columns, rows = report.stages([a_run(), a_run(server=one)]) or ([], [])
    assert columns == ["route", "load", "decode ms", "infer ms", "images/batch"]
    assert rows == [("v1", "8 clients", 1, 2, 4)]
    two = ServerSide((Stage("infer", "other", 3, 9),), (Batches("other", 5, 2),))
    columns, rows = report.stages([a_run(server=one), a_run(server=two)]) or ([], [])
    assert columns[2:] == [
        "decode ms",
        "infer ms, tiny",
        "infer ms, other",
        "images/batch, tiny",
        "images/batch, other",
    ]
    assert [row[2:] for row in rows] == [(1, 2, None, 4, None), (None, None, 3, None, 5)]
    assert report.stages([a_run()]) is None


def test_failures() -> None:
    assert report.failures(a_run()) == []
    run = a_run(errors={"503 overloaded": 2, "timeout": 1}, examples={"503 overloaded": "Full.\nWait."})
    assert report.failures(run) == [
        "v1, 8 clients: 3 requests failed.",
        "  2 × 503 overloaded, as in: Full. Wait.",
        "  1 × timeout",
    ]
    run = a_run([], in_flight=8, unsent=2, examples={"x": "y" * 999}, errors={"x": 1})
    lines = report.failures(run)
    assert "in flight, and not sent" in lines[-2]
    assert lines[-1] == "v1, 8 clients: no request was answered in 2.0 s; 8 were in flight."
    assert max(map(len, lines)) < 200
