"""The settings as Paddle Serving's config.yml."""

from pathlib import Path
from typing import Any

import pytest

from pdserve.config_yml import read_config
from pdserve.pipelines import SERVICES
from pdserve.runtimes.paddle_serving.config import Config, Operator, build

REPOSITORY = Path(__file__).parents[3]


def built(flags: dict[str, Any], config: Path | None = None) -> Config:
    made = SERVICES["classification"].settings(flags, {}, config)
    return build(made, [Operator("imagenet", made.first_model, "tiny_serving", ("out",))], (18080, 9993))


def test_without_a_file_it_has_paddle_servings_defaults() -> None:
    assert built({}).content == {
        "http_port": 18080,
        "rpc_port": 9993,
        "dag": {"tracer": {}},
        "op": {
            "imagenet": {
                "concurrency": 1,
                "timeout": -1,
                "batch_size": 1,
                "auto_batching_timeout": -1,
                "local_service_conf": {
                    "model_config": "tiny_serving",
                    "client_type": "local_predictor",
                    "device_type": 0,
                    "devices": "",
                    "precision": "fp32",
                    "fetch_list": ["out"],
                },
            }
        },
    }


@pytest.mark.parametrize(
    ("flags", "device_type", "devices"),
    [
        ({"devices": ("gpu:0",)}, 1, "0"),
        ({"devices": ("gpu:0", "gpu:2")}, 1, "0,2"),
        ({"devices": ("gpu:0",), "tensorrt": True}, 2, "0"),
        ({"devices": ("cpu",)}, 0, ""),
    ],
)
def test_devices(flags: dict[str, Any], device_type: int, devices: str) -> None:
    op = built(flags).content["op"]["imagenet"]
    local = op["local_service_conf"]
    assert (local["device_type"], local["devices"]) == (device_type, devices)
    assert op["concurrency"] == len(flags["devices"])  # a worker for each


def test_options_go_where_paddle_serving_has_them() -> None:
    flags = {"threads": 3, "ir_optim": True, "use_mkldnn": True, "timeout_ms": 500, "instances": 2}
    made = built(flags)
    op = made.content["op"]["imagenet"]
    local = op["local_service_conf"]
    assert (local["thread_num"], local["ir_optim"], local["use_mkldnn"]) == (3, True, True)
    assert (op["timeout"], op["concurrency"]) == (500, 2)
    assert made.content["dag"]["is_thread_op"] is False
    assert any("is_thread_op" in note for note in made.notes)


def test_a_batch_that_may_wait_is_a_batch() -> None:
    op = built({"max_batch_size": 4, "max_queue_delay_ms": 1.5}).content["op"]["imagenet"]
    assert (op["batch_size"], op["auto_batching_timeout"]) == (4, 2)


def test_a_batch_that_may_not_wait_is_none() -> None:
    """Paddle Serving would wait for ever for the rest of it."""
    made = built({"max_batch_size": 4})
    op = made.content["op"]["imagenet"]
    assert (op["batch_size"], op["auto_batching_timeout"]) == (1, -1)
    assert any("one request at a time" in note for note in made.notes)


def test_the_users_file_stays_what_it_is_but_for_what_was_said(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text(
        """
http_port: 8080
worker_num: 4
dag: {is_thread_op: False, retry: 2, use_profile: True, tracer: {interval_s: 30}, client_type: null}
op:
  imagenet:
    concurrency: 2
    retry: 3
    local_service_conf:
      model_config: somewhere_serving
      mkldnn_cache_capacity: 10
      thread_num: 1
      device_type: 1
      devices: "0"
pdserve: {crop: 224}
""",
        "utf-8",
    )
    made = built({"devices": ("cpu",), "threads": 2}, config)
    op = made.content["op"]["imagenet"]
    assert made.content["worker_num"] == 4
    assert made.content["dag"] == {
        "is_thread_op": False,
        "retry": 2,
        "use_profile": True,
        "tracer": {"interval_s": 30},
    }
    assert (op["concurrency"], op["retry"]) == (2, 3)
    local = op["local_service_conf"]
    assert (local["mkldnn_cache_capacity"], local["thread_num"]) == (10, 2)
    assert (local["device_type"], local["model_config"]) == (0, "tiny_serving")
    assert "pdserve" not in made.content
    assert made.notes == []


@pytest.mark.parametrize("kind", ["classification", "recognition"])
def test_the_repositorys_own_files_run_on_both(kind: str, tmp_path: Path) -> None:
    """What is written is a configuration that the native runtime reads as well."""
    import yaml

    path = REPOSITORY / "configs" / f"{kind}.yml"
    if kind == "classification":
        made = SERVICES["classification"].settings({}, {}, path)
        operators = [Operator("imagenet", made.first_model, "m", ("f",))]
        content = build(made, operators, (18080, 9993)).content
    else:
        other = SERVICES["recognition"].settings({}, {}, path)
        assert other.models["detector"]
        operators = [
            Operator("det", other.models["detector"], "d", ("f",)),
            Operator("rec", other.models["embedder"], "r", ("f",)),
        ]
        content = build(other, operators, (18081, 9994)).content
    out = tmp_path / "config.yml"
    out.write_text(yaml.safe_dump(content), "utf-8")
    roles = None if kind == "classification" else {o: r for r, o in SERVICES["recognition"].operators.items()}
    assert read_config(out, (), roles).settings["http_port"] == content["http_port"]


def test_metrics_have_the_tracer_that_they_read(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text("http_port: 8080\ndag: {enable_prometheus: True, prometheus_port: 19393}\n", "utf-8")
    made = built({}, config)
    assert made.content["dag"]["tracer"] == {"interval_s": 10}
    assert any("interval_s" in note for note in made.notes)
