"""The numbers, as Prometheus reads them."""

import sys

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from pdserve import __version__
from pdserve.services.telemetry.metrics import Metrics
from tests.services.watching import numbers

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


@pytest.fixture
def metrics() -> Metrics:
    """After some work."""
    metrics = Metrics()
    metrics.request("/v1/classification", "200", 0.03, predicts=True)
    metrics.request("inference", "OK", 0.05, predicts=True)
    metrics.request("inference", "err_no_6000", 0.02, predicts=True)
    metrics.request("/metrics", "200", 1)
    metrics.images("ok")
    metrics.images("overloaded", 3)
    metrics.stage("decode", 0.004, "tiny")
    metrics.stage("infer", 0.02, "tiny")
    metrics.stage("infer", 0.03, "tiny")
    metrics.batch("tiny", 3, 0.03)
    metrics.queue("tiny", lambda: 5)
    metrics.model("classifier", "tiny", "onnx", "cpu", "int8")
    metrics.rebuilt("hanging")
    metrics.index("drinks", 12, 4)
    return metrics


def test_all_that_is_told(metrics: Metrics) -> None:
    found = numbers(metrics)
    expected = {
        'pdserve_requests_total{code="200",route="/v1/classification"}': 1,
        'pdserve_request_seconds_sum{route="inference"}': 0.07,
        'pdserve_images_total{outcome="ok"}': 1,
        'pdserve_images_total{outcome="overloaded"}': 3,
        'pdserve_stage_seconds_count{model="tiny",stage="infer"}': 2,
        'pdserve_stage_seconds_sum{model="tiny",stage="decode"}': 0.004,
        'pdserve_batch_images_sum{model="tiny"}': 3,
        'pdserve_batch_images_bucket{le="2.0",model="tiny"}': 0,
        'pdserve_batch_images_bucket{le="4.0",model="tiny"}': 1,
        'pdserve_engine_busy_seconds_total{model="tiny"}': 0.03,
        'pdserve_queue_images{model="tiny"}': 5,
        'pdserve_model_info{device="cpu",engine="onnx",model="tiny",precision="int8",role="classifier"}': 1,
        'pdserve_engine_rebuilds_total{cause="hanging"}': 1,
        'pdserve_index_entries{index="drinks"}': 12,
        'pdserve_index_version{index="drinks"}': 4,
        f'pdserve_info{{version="{__version__}"}}': 1,
    }
    assert {name: found.get(name) for name in expected} == pytest.approx(expected)


def test_paddle_servings_own_counters(metrics: Metrics) -> None:
    """Of requests for predictions only."""
    found = numbers(metrics)
    expected = {
        "pd_query_request_success_total": 2,
        "pd_query_request_failure_total": 1,
        "pd_query_request_duration_us_total": 100_000,
        "pd_inference_count_total": 2,
        "pd_inference_duration_us_total": 50_000,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_the_form_is_what_was_asked_for(metrics: Metrics) -> None:
    for accept in ("", "*/*", "text/html", "text/plain;version=0.0.4"):
        text, media_type = metrics.exposition(accept)
        assert media_type.startswith("text/plain; version=0.0.4")
        assert len(list(plain(text.decode()))) > 10
    text, media_type = metrics.exposition(OPENMETRICS)
    assert media_type.startswith("application/openmetrics-text; version=1.0.0")
    assert {"pdserve_requests", "pd_inference_count"} <= {
        family.name for family in openmetrics(text.decode())
    }


def test_what_runs_now_replaces_what_ran(metrics: Metrics) -> None:
    metrics.model("classifier", "tiny", "paddle", "gpu:0", "fp16")
    metrics.index("drinks", 13, 5)
    metrics.queue("tiny", lambda: 0)
    found = numbers(metrics)
    models = [name for name in found if name.startswith("pdserve_model_info")]
    assert len(models) == 1
    assert 'engine="paddle"' in models[0]
    assert found['pdserve_index_version{index="drinks"}'] == 5
    assert found['pdserve_queue_images{model="tiny"}'] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_process(metrics: Metrics) -> None:
    found = numbers(metrics)
    assert found["process_resident_memory_bytes"] > 10_000_000
    assert found["process_cpu_seconds_total"] > 0
    assert found["process_open_fds"] > 2


def test_two_servers_in_one_process_do_not_mix(metrics: Metrics) -> None:
    assert not [name for name in numbers(Metrics()) if name.startswith("pdserve_requests_total")]
