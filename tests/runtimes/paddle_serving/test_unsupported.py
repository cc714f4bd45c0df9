"""What only the native runtime can do is refused by name."""

import sys
from pathlib import Path
from typing import Any

import pytest

from pdserve.errors import UsageError
from pdserve.pipelines import SERVICES
from pdserve.runtimes.paddle_serving import unsupported
from pdserve.settings import ServerSettings
from tests.running import pdserve

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="refused as a whole elsewhere")


def check(
    flags: dict[str, Any], environ: dict[str, str] | None = None, config: Path | None = None
) -> list[str]:
    return unsupported.check(SERVICES["classification"].settings(flags, environ or {}, config))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"tls_cert": Path("c"), "tls_key": Path("k")}, "--tls-cert"),
        ({"api_key_file": Path("keys")}, "--api-key"),
        ({"cors_origins": ("*",)}, "--cors-origin"),
        ({"allowed_hosts": ("shop.example",)}, "--allowed-host"),
        ({"prometheus_port": 9000}, "--prometheus-port"),
        ({"max_queue_size": 9}, "--max-queue-size"),
        ({"max_pixels": 9}, "--max-pixels"),
        ({"host": "127.0.0.1"}, "--host"),
        ({"top_k": 3}, "--top-k"),
        ({"engine": "onnx"}, "engine onnx"),
        ({"precision": "int8"}, "precision int8"),
        ({"precision": "fp16", "devices": ("gpu:0",)}, "precision fp16"),
        ({"precision": "bf16", "devices": ("gpu:0",)}, "bf16 on a CPU only"),
        ({"http_port": 80}, "http_port is 80"),
    ],
)
def test_an_option_is_refused_by_name(flags: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        check(flags)


# Of the server's settings what it honours, and what needs more than a number and is tried above.
_HONOURED = {"name", "http_port", "rpc_port", "grace_s", "log_file", "log_format"}
_ABOVE = {"host", "api_key", "api_key_file", "tls_cert", "tls_key", "cors_origins", "allowed_hosts"}


@pytest.mark.parametrize("name", sorted(ServerSettings.model_fields.keys() - _HONOURED - _ABOVE))
def test_no_limit_is_dropped_in_silence(name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}"):
        check({name: 4096})


@pytest.mark.parametrize("kind", ["detection", "attributes", "face", "embedding"])
def test_a_service_without_a_script_is_refused_by_name(kind: str) -> None:
    with pytest.raises(UsageError, match=f"no service for {kind}"):
        unsupported.check(SERVICES[kind].settings({}, {}))


def test_it_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    done = pdserve(tmp_path, "serve", "attributes", "--runtime", "paddle-serving", PDSERVE_OFFLINE="1")
    assert done.returncode == 2
    assert done.stderr == ("pdserve: Paddle Serving has no service for attributes; use --runtime native.\n")


def test_the_environment_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="has no PDSERVE_API_KEY"):
        check({}, {"PDSERVE_API_KEY": "secret"})


def test_the_index_is_not_written_by_callers() -> None:
    with pytest.raises(UsageError, match="--gallery-writes"):
        unsupported.check(SERVICES["recognition"].settings({"gallery_writes": True}, {}))


@pytest.mark.parametrize("key", ["api_key: secret", "host: 10.0.0.1", "tls_cert: a.pem"])
def test_what_guards_a_server_is_refused_in_the_file_too(tmp_path: Path, key: str) -> None:
    config = tmp_path / "config.yml"
    config.write_text(f"http_port: 18080\npdserve:\n  {key}\n", "utf-8")
    with pytest.raises(UsageError, match=f"has no pdserve.{key.partition(':')[0]}"):
        check({}, config=config)


def test_the_rest_of_the_files_block_is_noted(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text("http_port: 18080\npdserve:\n  max_queue_size: 9\n  crop: 224\n", "utf-8")
    notes = check({}, config=config)
    assert any("pdserve.max_queue_size" in note for note in notes)
    assert not any("crop" in note for note in notes)


@pytest.mark.parametrize(
    "flags",
    [
        {"engine": "paddle", "precision": "bf16"},
        {"devices": ("gpu:0",), "tensorrt": True, "precision": "fp16"},
        {"threads": 2, "instances": 2, "max_batch_size": 4, "timeout_ms": 100, "log_format": "json"},
        {"http_port": 0, "rpc_port": 0},
    ],
)
def test_what_it_can_do_is_not_refused(flags: dict[str, Any]) -> None:
    check(flags)


def test_it_is_told_that_it_listens_everywhere() -> None:
    assert any("every address" in note for note in check({}))
    assert check({"host": "0.0.0.0"}) == []
