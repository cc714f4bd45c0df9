"""config.yml: Paddle Serving's schema and pdserve's block."""

from pathlib import Path

from hypothesis import given

from pdserve.config_yml import read_config
from pdserve.errors import SettingsError
from tests.fuzz.guard import outcome
from tests.fuzz.yaml_text import mutated_yaml

CONFIGS = [
    {
        "http_port": 18080,
        "rpc_port": 9993,
        "worker_num": 1,
        "build_dag_each_worker": False,
        "dag": {"is_thread_op": False, "retry": 10, "use_profile": False, "tracer": {"interval_s": 10}},
        "op": {
            "imagenet": {
                "concurrency": 1,
                "timeout": 3000,
                "batch_size": 8,
                "auto_batching_timeout": 2000,
                "local_service_conf": {
                    "model_config": "m_serving",
                    "device_type": 1,
                    "devices": "0,1",
                    "client_type": "local_predictor",
                    "fetch_list": ["prediction"],
                    "thread_num": 2,
                },
            }
        },
        "pdserve": {"max_queue_size": 64, "labels": "labels.txt"},
    },
    {"op": {"det": {"local_service_conf": {"devices": "", "device_type": -1}}, "rec": {"concurrency": 4}}},
]
KNOWN = ("max_queue_size", "labels", "max_pixels")
ODD = (
    "0,1,",
    "٣",
    "9" * 5000,
    "gpu",
    {"det": None},
    {"rec": {"local_service_conf": {"devices": "9" * 5000}}},
)


@given(mutated_yaml(CONFIGS, ODD))
def test_config(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.yml"
    path.write_bytes(data)
    for roles in (None, {"det": "detector", "rec": "embedder"}):
        read = outcome(lambda roles=roles: read_config(path, KNOWN, roles), SettingsError)  # type: ignore[misc]
        if read is not None:
            assert all(note.isprintable() for note in read.notes)
