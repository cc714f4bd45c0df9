"""The winner in a config.yml."""

import os
import sys
from pathlib import Path

import pytest

from pdserve.errors import SettingsError
from pdserve.pipelines import SERVICES
from pdserve.tools.tune.candidates import DEFAULTS, Candidate, current
from pdserve.tools.tune.config import check, snippet, write

classification = SERVICES["classification"].settings
recognition = SERVICES["recognition"].settings

CONFIGS = Path(__file__).parents[3] / "configs"
TUNED = {
    "engine": "openvino", "precision": "int8", "instances": 2, "threads": 3, "max_batch_size": 4,
    "max_queue_delay_ms": 1.0,
}  # fmt: skip
ONE: Candidate = {"model": TUNED}
TWO: Candidate = {
    "detector": TUNED,
    "embedder": {**DEFAULTS, "engine": "openvino", "max_batch_size": 16, "max_queue_delay_ms": 1.0},
}


def changed(before: str, after: str) -> list[str]:
    """The lines of ``before`` that are no more, in order."""
    left = after.splitlines()
    return [line for line in before.splitlines() if line not in left]


def test_one_model_in_the_block(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    text = (CONFIGS / "classification.yml").read_text("utf-8")
    config.write_text(text, "utf-8")
    write(config, ONE)
    assert changed(text, config.read_text("utf-8")) == []
    assert current(classification({}, {}, config), {}) == ONE


def test_two_models_under_op_where_they_differ(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    text = (CONFIGS / "recognition.yml").read_text("utf-8")
    for key in ("concurrency", "batch_size"):
        text = text.replace(f"#{key}", key)
    config.write_text(text, "utf-8")
    write(config, TWO)
    lost = changed(text, config.read_text("utf-8"))
    assert {line.split(":")[0].strip() for line in lost} == {"concurrency", "batch_size"}
    assert "crops that run together at most" in config.read_text("utf-8")
    assert current(recognition({}, {}, config), {}) == TWO
    # And back: what is the same for both comes from the block.
    both = {role: {**DEFAULTS, "engine": "onnx", "instances": 5} for role in TWO}
    write(config, both)
    assert current(recognition({}, {}, config), {}) == both
    write(config, TWO)  # the block must not hide what is under op now
    assert current(recognition({}, {}, config), {}) == TWO


def test_instances_are_per_device_and_concurrency_is_not(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text("op: {det: {local_service_conf: {device_type: 1, devices: '0,1'}}}\nhttp_port: 1\n")
    write(config, TWO, devices=2)
    settings = recognition({}, {}, config)
    assert settings.models.get("detector")
    assert settings.models.get("detector").instances == TUNED["instances"]


@pytest.mark.posix
@pytest.mark.skipif(sys.platform == "win32", reason="has other permissions")
def test_comments_quotes_and_form_stay(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    text = (
        "# ours\r\nhttp_port: 1\r\nop:\r\n      cats:    # the name\r\n            concurrency: 3\r\n"
        "            local_service_conf:\r\n                  model_config: 'tiny'\r\n"
        'dag: {is_thread_op: True}\r\npdserve:\r\n      host: "::1"   # v6\r\n      cors_origins:\r\n'
        "      - 'http://a'   # one\r\n"
    )
    config.write_bytes(text.encode())
    config.chmod(0o640)
    write(config, ONE)
    written = config.read_bytes().decode()
    assert changed(text, written) == []
    assert written.count("\r\n") == written.count("\n")
    assert config.stat().st_mode & 0o777 == 0o640
    settings = classification({}, {}, config)
    assert (settings.models["model"].instances, settings.server.host) == (
        2,
        "::1",
    )  # the block comes before op
    write(config, ONE)
    assert config.read_bytes().decode() == written


@pytest.mark.posix
@pytest.mark.skipif(sys.platform == "win32", reason="makes a symbolic link")
def test_a_link_stays_a_link(tmp_path: Path) -> None:
    there, link = tmp_path / "there.yml", tmp_path / "config.yml"
    there.write_text("http_port: 1\n")
    link.symlink_to(there)
    write(link, ONE)
    assert link.is_symlink()
    assert "int8" in there.read_text()


@pytest.mark.parametrize("text", ["a: [1\n", "", "- 1\n", "http_port: 1\npdserve: 7\n", "a: &x [*x]\n"])
def test_a_file_that_is_no_configuration_stays_as_it_is(tmp_path: Path, text: str) -> None:
    config = tmp_path / "config.yml"
    config.write_text(text)
    with pytest.raises(SettingsError, match=r"config\.yml"):
        write(config, ONE)
    assert config.read_text() == text
    assert list(tmp_path.iterdir()) == [config]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text("http_port: 1\n")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(SettingsError, match="Permission denied"):
            check(config)
    finally:
        tmp_path.chmod(0o700)


def test_the_check_leaves_nothing_behind(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text("http_port: 1\n")
    check(config)
    assert config.read_text() == "http_port: 1\n"
    assert list(tmp_path.iterdir()) == [config]
    with pytest.raises(SettingsError, match="No such file"):
        check(tmp_path / "nowhere.yml")


def test_a_snippet_says_the_same(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text("http_port: 1\n" + snippet(TWO))
    assert current(recognition({}, {}, config), {}) == TWO
