from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pdserve.config_yml import ConfigFile, DagConf, LocalServiceConf, OpConf, TracerConf, read_config
from pdserve.errors import SettingsError
from pdserve.pipelines import SERVICES
from pdserve.settings import ClassificationOptions, ModelSettings, ServerSettings

classification = SERVICES["classification"].settings

# The values of PaddleClas's deploy/paddleserving/config.yml, with the guide's model.
GUIDE = """
worker_num: 1
http_port: 18080
rpc_port: 9993

dag:
    is_thread_op: False
op:
    imagenet:
        concurrency: 1
        local_service_conf:
            model_config: ResNet50_vd_serving
            device_type: 1
            devices: "0" # "0,1"
            client_type: local_predictor
            fetch_list: ["prediction"]
"""

KNOWN = {*ServerSettings.model_fields, *ModelSettings.model_fields, *ClassificationOptions.model_fields}


def read(path: Path) -> SimpleNamespace:
    """A classification service's file, with all that it says of the service and its model in one."""
    found = read_config(path, KNOWN)
    return SimpleNamespace(settings={**found.models.get("model", {}), **found.settings}, notes=found.notes)


def written(folder: Path, content: str | dict[str, Any]) -> Path:
    path = folder / "config.yml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), "utf-8")
    return path


def with_op(op: dict[str, Any] | None = None, local: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"http_port": 8001, "op": {"imagenet": {**(op or {}), "local_service_conf": local or {}}}}


def test_the_guides_file_unchanged(tmp_path: Path):
    found = classification({}, {}, written(tmp_path, GUIDE))
    assert (found.server.name, found.server.http_port, found.server.rpc_port) == ("imagenet", 18080, 9993)
    assert found.first_model.model == "ResNet50_vd_serving"
    assert found.first_model.devices == ("gpu:0",)
    assert found.first_model.instances == 1
    assert found.first_model.fetch_list == ("prediction",)
    assert not found.first_model.tensorrt
    assert found.notes == (
        "config.yml: dag.is_thread_op False has no effect: the model runs in threads of one process",
    )


def test_a_path_of_the_old_guide_that_is_not_there_means_the_name(tmp_path: Path):
    path = written(tmp_path, with_op(local={"model_config": "../../models/ResNet50_vd_serving/"}))
    found = classification({}, {}, path)
    assert found.first_model.model == "ResNet50_vd"
    assert found.notes == (
        "config.yml: op.imagenet: ../../models/ResNet50_vd_serving/ is not there, "
        "so ResNet50_vd of pdserve's home is taken",
    )
    (tmp_path / "models" / "ResNet50_vd_serving").mkdir(parents=True)
    for there in ("./models/ResNet50_vd_serving", "/models/ResNet50_vd_serving", "../models/ResNet50_vd"):
        path = written(tmp_path, with_op(local={"model_config": there}))
        assert classification({}, {}, path).first_model.model == there


def test_every_key_that_is_honoured(tmp_path: Path):
    local = {
        "model_config": "m", "device_type": 2, "devices": "0, 1", "thread_num": 3, "precision": "FP16",
        "ir_optim": True, "use_mkldnn": False, "fetch_list": ["out"],
    }  # fmt: skip
    op = {"concurrency": 4, "timeout": 900, "batch_size": 16, "auto_batching_timeout": 5}
    found = classification({}, {}, written(tmp_path, with_op(op, local))).first_model
    assert found.model == "m"
    assert found.devices == ("gpu:0", "gpu:1")
    assert found.tensorrt
    assert found.threads == 3
    assert found.precision == "fp16"
    assert (found.ir_optim, found.use_mkldnn) == (True, False)
    assert found.fetch_list == ("out",)
    assert (found.timeout_ms, found.max_batch_size, found.max_queue_delay_ms) == (900, 16, 5)


@pytest.mark.parametrize(
    ("concurrency", "devices", "instances"),
    [(1, "0", 1), (4, "0", 4), (4, "0,1", 2), (1, "0,1", 1), (3, "0,1", 2)],
)
def test_concurrency_is_dealt_out_to_the_devices(
    tmp_path: Path, concurrency: int, devices: str, instances: int
):
    content = with_op({"concurrency": concurrency}, {"device_type": 1, "devices": devices})
    assert classification({}, {}, written(tmp_path, content)).first_model.instances == instances


@pytest.mark.parametrize(
    ("device_type", "devices", "expected"),
    [
        (-1, "", ("cpu",)),
        (-1, "1", ("gpu:1",)),
        (0, "", ("cpu",)),
        (0, "0", ("cpu",)),
        (1, "0,2", ("gpu:0", "gpu:2")),
        (2, "3", ("gpu:3",)),
        (None, None, ("cpu",)),
    ],
)
def test_devices(tmp_path: Path, device_type: object, devices: object, expected: tuple[str, ...]):
    path = written(tmp_path, with_op({}, {"device_type": device_type, "devices": devices}))
    assert classification({}, {}, path).first_model.devices == expected


@pytest.mark.parametrize(
    ("dag", "port"),
    [
        ({"enable_prometheus": True, "prometheus_port": 9000}, 9000),
        ({"enable_prometheus": True}, 19393),
        ({"enable_prometheus": False, "prometheus_port": 9000}, None),
        ({"prometheus_port": 9000}, None),
        ({}, None),
    ],
)
def test_the_port_of_the_metrics(tmp_path: Path, dag: dict[str, Any], port: int | None):
    path = written(tmp_path, {"http_port": 8001, "dag": dag})
    assert classification({}, {}, path).server.prometheus_port == port
    assert classification({"prometheus_port": 7}, {}, path).server.prometheus_port == 7
    path = written(tmp_path, {"http_port": 8001, "dag": dag, "pdserve": {"prometheus_port": 8}})
    assert classification({}, {}, path).server.prometheus_port == 8


def test_times_of_minus_one_are_none(tmp_path: Path):
    path = written(tmp_path, with_op({"timeout": -1, "auto_batching_timeout": -1}))
    found = classification({}, {}, path).first_model
    assert (found.timeout_ms, found.max_queue_delay_ms) == (None, 0)


def test_null_is_the_default(tmp_path: Path):
    """As in the published schema."""

    def nulls(schema: type) -> dict[str, Any]:
        return {field.alias or name: None for name, field in schema.model_fields.items()}

    content = nulls(ConfigFile) | {"http_port": 8001, "pdserve": {"engine": None, "top_k": None}}
    assert classification({}, {}, written(tmp_path, content)).server.http_port == 8001
    content["dag"] = nulls(DagConf) | {"tracer": nulls(TracerConf)}
    content["op"] = {"imagenet": nulls(OpConf) | {"local_service_conf": nulls(LocalServiceConf)}}
    found = classification({}, {}, written(tmp_path, content))
    assert found.first_model == classification({}, {}).first_model
    assert found.notes == ()


def test_published_defaults_spelt_out_need_no_note(tmp_path: Path):
    """What the published checker fills in for keys that are left out."""
    content = {
        "http_port": 8001,
        "worker_num": 1,
        "build_dag_each_worker": False,
        "dag": {
            "retry": 1, "use_profile": False, "channel_size": 0, "is_thread_op": True,
            "tracer": {"interval_s": -1}, "channel_recv_frist_arrive": False,
        },
        "op": {
            "imagenet": {
                "concurrency": 1, "timeout": -1, "retry": 1, "batch_size": 1, "auto_batching_timeout": -1,
                "local_service_conf": {
                    "workdir": "", "thread_num": 2, "device_type": -1, "devices": "", "mem_optim": True,
                    "ir_optim": False, "precision": "fp32", "use_calib": False, "use_mkldnn": False,
                    "mkldnn_cache_capacity": 0, "min_subgraph_size": 3,
                },
            }
        },
    }  # fmt: skip
    assert read(written(tmp_path, content)).notes == ()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"worker_num": 4}, "worker_num 4 has no effect"),
        ({"build_dag_each_worker": True}, "build_dag_each_worker has no effect"),
        ({"grpc_gateway_port": 8080}, "grpc_gateway_port has no effect"),
        ({"dag": {"retry": 3}}, "dag.retry has no effect"),
        ({"dag": {"channel_size": 9}}, "dag.channel_size has no effect; set pdserve.max_queue_size"),
        ({"dag": {"use_profile": True}}, "dag.use_profile and dag.tracer have no effect"),
        ({"dag": {"tracer": {"interval_s": 10}}}, "dag.use_profile and dag.tracer have no effect"),
        ({"dag": {"channel_recv_frist_arrive": True}}, "dag.channel_recv_frist_arrive has no effect"),
        ({"dag": {"is_thread_op": False}}, "dag.is_thread_op False has no effect"),
        ({"dag": {"client_type": "brpc"}}, "dag.client_type has no effect"),
        (
            {"dag": {"prometheus_port": 9000}},
            "dag.prometheus_port has no effect without dag.enable_prometheus",
        ),
        (with_op({"retry": 2}), "op.imagenet.retry has no effect"),
        (with_op({"encryption_key": "k"}), "op.imagenet.encryption_key has no effect"),
        (with_op({}, {"mem_optim": False}), "local_service_conf.mem_optim has no effect"),
        (with_op({}, {"workdir": "w"}), "local_service_conf.workdir has no effect"),
        (
            with_op({}, {"mkldnn_cache_capacity": 10}),
            "local_service_conf.mkldnn_cache_capacity has no effect",
        ),
        (with_op({}, {"min_subgraph_size": 5}), "local_service_conf.min_subgraph_size has no effect"),
    ],
)
def test_keys_without_a_meaning_here_are_noted(tmp_path: Path, content: dict[str, Any], words: str):
    (note,) = read(written(tmp_path, {"http_port": 8001} | content)).notes
    assert note.startswith("config.yml: ")
    assert words in note


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            with_op({"server_endpoints": ["127.0.0.1:9393"]}),
            "op.imagenet.server_endpoints names another server",
        ),
        (with_op({"client_config": "c.prototxt"}), "names another server"),
        (with_op({"client_type": "brpc"}), "client_type brpc needs Paddle Serving's own runtime"),
        (with_op({}, {"client_type": "grpc"}), "client_type grpc needs Paddle Serving's own runtime"),
        (with_op({"use_encryption_model": True}), "op.imagenet.use_encryption_model is not supported"),
        (with_op({}, {"use_calib": True}), "local_service_conf.use_calib is not supported"),
        (with_op({}, {"mkldnn_op_list": ["conv2d"]}), "mkldnn_op_list is not supported"),
        (with_op({}, {"mkldnn_bf16_op_list": ["conv2d"]}), "mkldnn_bf16_op_list is not supported"),
        (with_op({}, {"dynamic_shape_info": {"x": [1]}}), "dynamic_shape_info is not supported"),
        (with_op({}, {"device_type": 3}), r"device_type 3 \(ARM CPU\) is not supported"),
        (with_op({}, {"device_type": 4}), r"device_type 4 \(Kunlun XPU\) is not supported"),
        (with_op({}, {"device_type": 5}), r"device_type 5 \(Ascend 310\) is not supported"),
        (with_op({}, {"device_type": 6}), r"device_type 6 \(Ascend 910\) is not supported"),
        (with_op({}, {"device_type": 7}), "device_type is 7; use 0"),
        (with_op({}, {"device_type": 1, "devices": ""}), "devices is ''; give the GPUs' numbers"),
        (with_op({}, {"device_type": 1, "devices": "0;1"}), "devices is '0;1'"),
        (with_op({}, {"device_type": 1, "devices": "²"}), "devices is '²'"),
        (with_op({}, {"device_type": 1, "devices": "0,,1"}), "devices is '0,,1'; give the GPUs' numbers"),
        (with_op({}, {"devices": "0,"}), "devices is '0,'; give the GPUs' numbers"),
        ({"op": {True: {}}}, "op has the name True, which is no text; put it in quotation marks"),
        (with_op({}, {"device_type": 1, "devices": "9" * 5000}), "devices is '9999.*give the GPUs' numbers"),
        (with_op({}, {"devices": 0}), "op.imagenet.local_service_conf.devices is 0: .*string"),
        (with_op({}, {"precision": "fp8"}), "precision is 'fp8'"),
        (with_op({"concurrency": 0}), "op.imagenet.concurrency is 0"),
        (with_op({"concurrency": True}), "op.imagenet.concurrency is True"),
        (with_op({"batch_size": "8"}), "op.imagenet.batch_size is '8': .*integer"),
        (with_op({}, {"thread_num": 0}), "local_service_conf.thread_num is 0"),
        (with_op({}, {"use_mkldnn": "on"}), "local_service_conf.use_mkldnn is 'on'"),
        ({"http_port": "18080"}, "http_port is '18080'"),
        ({"http_port": 99999}, "http_port is 99999"),
        ({"dag": {"enable_prometheus": True, "prometheus_port": 0}}, "dag.prometheus_port is 0"),
        ({"dag": {"tracer": {"interval": 1}}}, "dag.tracer.interval is no setting"),
        ({"op": []}, r"op is \[\]"),
        ({"op": {"imagenet": None}}, "op.imagenet is None"),
        ({"op": {"a": {}, "b": {}}}, "op has a, b; a classification service has one model"),
        ({"htp_port": 1}, "htp_port is no setting that Paddle Serving or pdserve knows"),
        (with_op({"batchsize": 1}), "op.imagenet.batchsize is no setting"),
        (with_op({}, {"thread_nums": 1}), "op.imagenet.local_service_conf.thread_nums is no setting"),
        ({"http_port": 8001, "pdserve": {"topk": 5}}, "pdserve.topk is no setting that pdserve knows"),
        ({"pdserve": [1]}, r"pdserve is \[1\]"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path: Path, content: dict[str, Any], words: str):
    with pytest.raises(SettingsError, match=words) as caught:
        classification({}, {}, written(tmp_path, content))
    assert "config.yml: " in caught.value.message


def test_the_operator_of_a_service_of_one_model_gives_it_its_settings(tmp_path: Path) -> None:
    own: dict[str, Any] = {
        "http_port": 1,
        "op": {"boxes": {"batch_size": 3, "local_service_conf": {"model_config": "my_detector"}}},
    }
    found = SERVICES["detection"].settings({}, {}, written(tmp_path, own))
    detector = found.models["detector"]
    assert (found.server.name, detector.model, detector.max_batch_size) == ("boxes", "my_detector", 3)
    with pytest.raises(SettingsError, match="op has a, b; a detection service has one model"):
        SERVICES["detection"].settings({}, {}, written(tmp_path, {"op": {"a": {}, "b": {}}}))


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n", "text", "5"])
def test_no_settings(tmp_path: Path, text: str):
    with pytest.raises(SettingsError, match="holds no settings"):
        read(written(tmp_path, text))


@pytest.mark.parametrize(
    "text", ["a: [1", "a: b: c", "\tx: 1", "!!python/object:os.system {}", "a: 2001-13-45"]
)
def test_not_yaml(tmp_path: Path, text: str):
    with pytest.raises(SettingsError, match=r"config\.yml is no YAML"):
        read(written(tmp_path, text))


def test_not_text(tmp_path: Path):
    path = tmp_path / "config.yml"
    path.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(SettingsError, match="is no YAML"):
        read(path)


def test_a_file_of_another_system(tmp_path: Path):
    path = tmp_path / "config.yml"
    path.write_bytes(b"\xef\xbb\xbf" + GUIDE.replace("\n", "\r\n").encode("utf-8"))
    assert read(path).settings["http_port"] == 18080


def test_missing(tmp_path: Path):
    for path in (tmp_path / "none.yml", tmp_path):
        with pytest.raises(SettingsError, match="Cannot read the configuration"):
            read(path)


def test_pdserves_block_comes_before_the_schemas_keys(tmp_path: Path):
    content = with_op({"batch_size": 2}) | {"pdserve": {"max_batch_size": 5, "engine": "onnx"}}
    found = classification({}, {}, written(tmp_path, content)).first_model
    assert (found.max_batch_size, found.engine) == (5, "onnx")


def test_labels_are_beside_the_file(tmp_path: Path):
    relative = written(tmp_path, {"http_port": 8001, "pdserve": {"labels": "own.txt"}})
    assert classification({}, {}, relative).options.labels == tmp_path / "own.txt"
    assert classification({"labels": Path("given.txt")}, {}, relative).options.labels == Path("given.txt")
    absolute = tmp_path / "elsewhere" / "own.txt"
    path = written(tmp_path, {"http_port": 8001, "pdserve": {"labels": str(absolute)}})
    assert classification({}, {}, path).options.labels == absolute
