"""The options of the commands: none is lost, and those of settings follow from their declaration."""

import inspect
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer.main

from pdserve.commands.options import flags, with_settings
from pdserve.commands.table import COMMANDS, LazyCommand, app
from pdserve.engines.table import ENGINES
from pdserve.errors import SettingsError, UsageError
from pdserve.pipelines import SERVICES
from pdserve.settings import PANELS, SettingsGroup, describe, setting
from tests.running import pdserve
from tests.tiny import build_inference_model

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "options.json").read_text("utf-8"))


def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    command = command.load() if isinstance(command, LazyCommand) else command
    if hasattr(command, "commands"):
        for part, each in command.commands.items():
            yield from walk(f"{name} {part}".strip(), each)
    else:
        yield name, command


def options(command: Any) -> set[str]:
    return {option for each in command.params for option in (*each.opts, *each.secondary_opts)}


FOUND = dict(walk("", typer.main.get_command(app)))


@pytest.mark.parametrize("name", RECORDED)
def test_no_option_that_a_script_may_use_is_lost(name: str) -> None:
    # An option may be spelled with underscores, as Paddle Serving spells its own.
    assert {option.replace("_", "-") for option in RECORDED[name]} <= options(FOUND[name])


def test_options_may_be_spelled_with_underscores(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    build_inference_model(source)
    done = pdserve(
        tmp_path, "convert", "--dirname", str(source), "--model_filename", "inference.pdmodel",
        "--params_filename", "inference.pdiparams", "--serving_server", str(tmp_path / "server"),
        "--serving_client", str(tmp_path / "client"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "server" / "serving_server_conf.prototxt").is_file()


def test_commands_are_in_the_order_of_the_work() -> None:
    assert list(COMMANDS)[:8] == ["run", "fetch", "convert", "alias", "serve", "predict", "index", "doctor"]


@pytest.mark.parametrize("kind", SERVICES)
def test_every_setting_has_its_options_in_serve_and_a_panel(kind: str) -> None:
    settings = describe(SERVICES[kind])
    assert len({each.name for each in settings}) == len(settings)
    assert {flag for each in settings for flag in each.flags} <= options(FOUND[f"serve {kind}"])
    for each in settings:
        assert each.panel in PANELS
        assert each.help.endswith(".")
        assert each.variable == f"PDSERVE_{each.name.upper()}"


def test_a_wrong_engine_is_answered_with_all_names(tmp_path: Path) -> None:
    done = pdserve(tmp_path, "serve", "classification", "--engine", "nothing", COLUMNS="200")
    assert done.returncode == 2
    assert f"'nothing' is not one of auto, {', '.join(ENGINES)}." in done.stderr


def test_help_shows_panels_defaults_and_variables_in_80_columns(tmp_path: Path) -> None:
    done = pdserve(tmp_path, "serve", "classification", "--help", COLUMNS="80")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    for words in (*PANELS, "default: 18080; PDSERVE_HTTP_PORT", "default: ResNet50_vd; PDSERVE_MODEL"):
        assert words in done.stdout


def test_flags_of_a_service() -> None:
    given = {
        "gpu": "0, 1",
        "cpu": None,
        "mean": "0.5, 0.25,0.125",
        "cors_origins": ["https://a", "https://b"],
    }
    found = SERVICES["classification"].settings(flags(given, "classification"), {})
    assert found.first_model.devices == ("gpu:0", "gpu:1")
    assert found.options.mean == (0.5, 0.25, 0.125)
    assert found.server.cors_origins == ("https://a", "https://b")
    assert flags({"gpu": None, "cpu": None, "cors_origins": [], "labels": None}, "classification") == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gpu": "0", "cpu": True}, "contradict"),
        ({"gpu": "first"}, "--gpu is 'first'"),
        ({"gpu": "0,,1"}, "--gpu is '0,,1'"),
        ({"gpu": "9" * 5000}, "--gpu is '999"),
        ({"index": "drinks"}, "--index goes with --service recognition"),
    ],
)
def test_options_that_do_not_fit(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        flags(given, "classification")


def test_what_is_wrong_names_the_option_that_gave_it() -> None:
    for name, value, option in (("grace_s", "-1", "--grace"), ("cors_origins", 5, "--cors-origin")):
        with pytest.raises(SettingsError, match=f"^{option}: {name} is"):
            SERVICES["classification"].settings({name: value}, {})


class Extra(SettingsGroup):
    """Options of a service that a test makes."""

    shade: int = setting("Results", 3, "A shade of grey.", "N", ge=1)


def test_a_setting_is_declared_once(tmp_path: Path) -> None:
    """Its option, variable, key, default and bounds follow from the field."""
    entry = replace(SERVICES["classification"], options=f"{__name__}:Extra")
    (shade,) = (each for each in describe(entry) if each.name == "shade")
    assert (shade.flags, shade.variable, shade.key) == (("--shade",), "PDSERVE_SHADE", "pdserve.shade")

    @with_settings([entry], PANELS)
    def command(**given: Any) -> None: ...

    assert "shade" in inspect.signature(command).parameters
    config = tmp_path / "config.yml"
    config.write_text("http_port: 8001\npdserve: {shade: 4}\n", "utf-8")
    assert entry.settings({}, {}).options.shade == 3
    assert entry.settings({}, {}, config).options.shade == 4
    assert entry.settings({}, {"PDSERVE_SHADE": "5"}, config).options.shade == 5
    assert entry.settings({"shade": "6"}, {"PDSERVE_SHADE": "5"}).options.shade == 6
    with pytest.raises(SettingsError, match=r"^--shade: shade is '0'"):
        entry.settings({"shade": "0"}, {})
