from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from pdserve.config_yml import read_config
from pdserve.errors import SettingsError
from pdserve.pipelines import SERVICES
from pdserve.settings import ClassificationOptions, ModelSettings, ServerSettings

classification = SERVICES["classification"].settings

OWN = Path(__file__).parents[1] / "configs" / "classification.yml"
FILE = """
http_port: 8001
rpc_port: 8002
op:
    cats:
        concurrency: 3
pdserve:
    host: 10.0.0.1
    top_k: 3
    mean: [0.1, 0.2, 0.3]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yml"
    path.write_text(FILE, "utf-8")
    return path


def test_defaults():
    found = classification({}, {})
    assert (found.server.name, found.server.host) == ("imagenet", "127.0.0.1")
    assert (found.server.http_port, found.server.rpc_port) == (18080, 9993)
    assert (found.first_model.model, found.first_model.engine, found.first_model.devices) == (
        "ResNet50_vd",
        "auto",
        ("cpu",),
    )
    assert found.options == ClassificationOptions()
    assert (found.config_dir, found.notes) == (Path(), ())


def test_flag_over_environment_over_file_over_default(config: Path):
    environ = {"PDSERVE_HTTP_PORT": "8011", "PDSERVE_RPC_PORT": "8012"}
    found = classification({"http_port": 8021}, environ, config)
    assert found.server.http_port == 8021  # flag
    assert found.server.rpc_port == 8012  # environment
    assert (found.server.name, found.server.host, found.first_model.instances) == (
        "cats",
        "10.0.0.1",
        3,
    )  # file
    assert found.first_model.max_batch_size == "auto"  # default
    assert found.config_dir == config.parent


def test_a_flag_that_was_not_given_says_nothing(config: Path):
    assert classification({"http_port": None, "top_k": None}, {}, config).server.http_port == 8001


def test_an_empty_variable_says_nothing(config: Path):
    assert (
        SERVICES["classification"]
        .settings({}, {"PDSERVE_HTTP_PORT": "", "PDSERVE_MEAN": ""}, config)
        .server.http_port
        == 8001
    )


def test_variables_of_other_names_are_let_alone():
    environ = {"PDSERVE_HOME": "/x", "PDSERVE_DEBUG": "1", "HTTP_PORT": "1", "http_proxy": "http://x"}
    assert classification({}, environ) == classification({}, {})


def test_lists_in_the_environment():
    environ = {
        "PDSERVE_MEAN": "0.5, 0.25,0.125",
        "PDSERVE_DEVICES": "gpu:0,gpu:1",
        "PDSERVE_RESIZE": "160,80",
        "PDSERVE_FETCH_LIST": "prediction",
    }
    found = classification({}, environ)
    assert found.options.mean == (0.5, 0.25, 0.125)
    assert found.options.resize == (160, 80)
    assert found.first_model.devices == ("gpu:0", "gpu:1")
    assert found.first_model.fetch_list == ("prediction",)


@pytest.mark.parametrize(
    ("flags", "environ", "words"),
    [
        ({"http_port": 70000}, {}, r"--http-port: http_port is 70000"),
        ({}, {"PDSERVE_HTTP_PORT": "http"}, r"PDSERVE_HTTP_PORT: http_port is 'http'"),
        ({}, {"PDSERVE_MEAN": "1,2"}, r"PDSERVE_MEAN: mean is '1,2': it takes R,G,B\.$"),
        ({}, {"PDSERVE_MEAN": "1,2,3,4"}, r"PDSERVE_MEAN: mean is '1,2,3,4': it takes R,G,B\.$"),
        ({"resize": "224"}, {}, r"--resize: resize is '224': it takes W,H\.$"),
        ({}, {"PDSERVE_STD": "1,2,x"}, r"PDSERVE_STD: std is 'x'"),
        ({}, {"PDSERVE_GRACE_S": "inf"}, r"PDSERVE_GRACE_S: grace_s is 'inf'"),
        ({"precision": "fp8"}, {}, r"--precision: precision is 'fp8'.*fp16"),
        ({"max_batch_size": 0}, {}, r"--max-batch-size: max_batch_size is 0"),
        ({"threshold": 1.5}, {}, r"--threshold: threshold is 1.5"),
        ({"channel_order": "gbr"}, {}, r"--channel-order: channel_order is 'gbr'"),
        ({"host": ""}, {}, r"--host: host is ''"),
    ],
)
def test_what_is_wrong_says_where_it_came_from(flags: dict[str, Any], environ: dict[str, str], words: str):
    with pytest.raises(SettingsError, match=words):
        classification(flags, environ)


def test_what_is_wrong_in_the_file_names_the_file(config: Path):
    config.write_text(FILE.replace("top_k: 3", "top_k: 0"), "utf-8")
    with pytest.raises(SettingsError, match=r"config\.yml: top_k is 0"):
        classification({}, {}, config)


def test_an_error_in_the_file_that_a_flag_overrides_is_none(config: Path):
    config.write_text(FILE.replace("top_k: 3", "top_k: 0"), "utf-8")
    assert classification({"top_k": 4}, {}, config).options.top_k == 4


@pytest.mark.parametrize(
    ("text", "ports"),
    [("http_port: 8001", (8001, None)), ("rpc_port: 8002", (None, 8002)), (FILE, (8001, 8002))],
)
def test_a_port_that_the_file_leaves_out_is_a_door_that_stays_shut(config: Path, text: str, ports: object):
    config.write_text(text, "utf-8")
    found = classification({}, {}, config).server
    assert (found.http_port, found.rpc_port) == ports


def test_both_ports_left_out(config: Path):
    config.write_text("worker_num: 1", "utf-8")
    with pytest.raises(SettingsError, match="http_port and rpc_port are both off"):
        classification({}, {}, config)
    assert classification({"rpc_port": 0}, {}, config).server.rpc_port == 0


TENSORRT = """
http_port: 8001
op:
    imagenet:
        local_service_conf: {device_type: 2, devices: "0"}
"""


def test_cpu_puts_the_files_gpu_aside_and_tensorrt_with_it(config: Path):
    config.write_text(TENSORRT, "utf-8")
    asked = classification({}, {}, config).first_model
    assert (asked.devices, asked.tensorrt) == (("gpu:0",), True)
    for flags, environ in (({"devices": ("cpu",)}, {}), ({}, {"PDSERVE_DEVICES": "cpu"})):
        found = classification(flags, environ, config).first_model
        assert (found.devices, found.tensorrt) == (("cpu",), False)
    other = classification({"devices": ("gpu:1",)}, {}, config).first_model
    assert (other.devices, other.tensorrt) == (("gpu:1",), True)
    # Who asks for both is told by the engine.
    both = classification({"devices": ("cpu",), "tensorrt": True}, {}, config).first_model
    assert both.tensorrt


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        classification({}, {}).server.host = "0.0.0.0"


def test_the_configuration_that_comes_with_pdserve_says_the_defaults():
    found, default = (
        classification({}, {}, OWN),
        classification({}, {}),
    )
    assert found.server == default.server
    assert found.options == default.options
    assert found.notes == ()
    assert found.first_model.model.removesuffix("_serving") == default.first_model.model
    assert found.first_model.fetch_list == ("prediction",)
    same = {"model": default.first_model.model, "fetch_list": ()}
    assert found.first_model.model_copy(update=same) == default.first_model


def test_its_list_of_pdserves_own_settings_is_whole_and_true(tmp_path: Path):
    """The commented block, taken as it stands, changes nothing, and nothing is missing from it."""
    text = OWN.read_text("utf-8")
    block = yaml.safe_load(text[text.index("#pdserve:") :].replace("\n#", "\n")[1:])["pdserve"]
    groups = (ServerSettings, ModelSettings, ClassificationOptions)
    defaults = {key: field.default for group in groups for key, field in group.model_fields.items()}
    in_yaml = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
    assert block == {key: in_yaml[key] for key in block}
    read = read_config(OWN, defaults)
    in_schema = set(read.settings) | set(read.models["model"]) | {
        "threads", "instances", "max_batch_size", "ir_optim", "use_mkldnn", "max_queue_delay_ms", "timeout_ms"
    }  # fmt: skip
    assert set(block) == set(defaults) - in_schema
    path = tmp_path / "all.yml"
    head, tail = text.split("#pdserve:")
    path.write_text(head + "pdserve:" + tail.replace("\n#", "\n"), "utf-8")
    assert classification({}, {}, path).options == ClassificationOptions()
    assert classification({}, {}, path).server == classification({}, {}).server
