"""``pdserve tune``: what it chooses among trials, and the real command with a tiny model."""

import json
from pathlib import Path

import pytest

from pdserve.errors import SettingsError
from pdserve.settings import classification
from pdserve.tune import Goal, Trial, write
from tests.running import pdserve

SLOW_BUT_STEADY = Trial({"instances": 1}, 10.0, 40.0, 50.0)
FAST = Trial({"instances": 2}, 20.0, 60.0, 200.0)
FASTEST = Trial({"instances": 4}, 30.0, 80.0, 400.0)
NOT_HERE = Trial({"engine": "paddle"}, refused="it is not installed")
ALL = [SLOW_BUT_STEADY, FAST, NOT_HERE, FASTEST]


def test_throughput_takes_the_fastest() -> None:
    assert Goal().best(ALL) is FASTEST


def test_a_bound_takes_the_fastest_that_keeps_it() -> None:
    assert Goal(200).best(ALL) is FAST
    assert Goal(60).best(ALL) is SLOW_BUT_STEADY
    assert Goal(1).best(ALL) is None
    assert Goal(1).nearest(ALL) is SLOW_BUT_STEADY


def test_where_nothing_ran_nothing_is_best() -> None:
    assert Goal().best([NOT_HERE]) is None
    assert Goal().nearest([NOT_HERE]) is None


def test_the_winner_is_written_and_the_rest_of_the_file_stays(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text(
        '# ours\nhttp_port: 1\nop:\n    cats:    # the name\n        concurrency: 3\npdserve: {host: "::1"}\n'
    )
    write(config, Trial({"engine": "openvino", "instances": 2, "max_queue_delay_ms": 0}))
    text = config.read_text()
    assert "# ours" in text
    assert "# the name" in text
    found = classification({}, {}, config)
    assert (found.model.engine, found.model.instances, found.server.host) == ("openvino", 2, "::1")


def test_a_file_that_is_no_configuration_stays_as_it_is(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text("a: [1\n")
    with pytest.raises(SettingsError):
        write(config, FAST)
    assert config.read_text() == "a: [1\n"
    assert list(tmp_path.iterdir()) == [config]


def test_the_command_tries_prints_and_writes(tiny_home: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text("op: {imagenet: {local_service_conf: {model_config: tiny}}}\nhttp_port: 18080\n")
    done = pdserve(tiny_home, "tune", "--config", str(config), "--seconds", "0.1", "--clients", "2", "--json")
    assert done.returncode == 0, done.stderr
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    (best,) = (trial for trial in trials if trial["best"])
    assert best["images_per_s"] == max(trial.get("images_per_s", 0) for trial in trials)
    tried = {key for trial in trials for key in trial["settings"]}
    assert tried == {"engine", "precision", "instances", "threads", "max_batch_size", "max_queue_delay_ms"}
    assert any(trial.get("refused") for trial in trials)  # nobody has made it int8
    model = classification({}, {}, config).model
    assert {name: getattr(model, name) for name in best["settings"]} == best["settings"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--model", "tiny", "--throughput", "--p99", "5"), "two goals"),
        (("--model", "nothing"), "nothing"),
        (("--model", "tiny", "--config", "nowhere.yml"), "nowhere.yml"),
        (("--model", "tiny", "--images", "nowhere"), "nowhere"),
        (("--model", "tiny", "--p99", "0.0001", "--seconds", "0.1"), "Nothing keeps"),
    ],
)
def test_what_cannot_be_done_is_said(tiny_home: Path, options: tuple[str, ...], told: str) -> None:
    done = pdserve(tiny_home, "tune", *options)
    assert done.returncode in (1, 2)
    assert told in done.stderr
    assert "Traceback" not in done.stderr
