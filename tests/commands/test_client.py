"""The command of pdserve-client, run from the checkout; installed it is in tests/end_to_end."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pdserve import __version__
from pdserve.commands import client
from pdserve.commands.predict_options import OPTIONS
from pdserve.commands.table import COMMANDS, LazyCommand
from pdserve.errors import OnlyClientError, PdserveError, UsageError
from tests.running import Server
from tests.tiny import picture

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: object) -> tuple[int, str, str]:
        """Exit code, output and errors of the command; raises what `pdserve.cli` says in one sentence."""
        monkeypatch.setattr(sys, "argv", ["pdserve-client", *map(str, words)])
        status = 0
        try:
            client.app()
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "red.png", tmp_path / "blue.png"]
    for path, colour in zip(paths, ((250, 0, 0), (0, 0, 250)), strict=True):
        path.write_bytes(picture(colour))
    return paths


@pytest.mark.parametrize("rpc", [False, True])
def test_it_asks_a_server(run: Run, images: list[Path], tiny_server: Server, rpc: bool) -> None:
    where = ("--rpc", "--url", tiny_server.target) if rpc else ("--url", tiny_server.url)
    # Options between images, and with underscores, as `pdserve predict` takes them.
    status, out, err = run("predict", images[0], *where, "--json", "--top_k=1", images[1])
    assert (status, err) == (0, "")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [each["image"] for each in answers] == list(map(str, images))
    assert [each["labels"][0]["label"] for each in answers] == ["red", "blue"]


def test_an_image_without_an_answer_makes_it_fail(run: Run, images: list[Path], tiny_server: Server) -> None:
    status, out, err = run("predict", images[0], images[0].parent / "none.png", "--url", tiny_server.url)
    assert status == 1
    assert "red" in out
    assert "none.png" in err


def test_it_has_the_options_of_predict_that_need_no_engine(run: Run) -> None:
    found = LazyCommand("predict", COMMANDS["predict"]).load()
    remote = {option for each in found.params for option in each.opts if each.name in OPTIONS}
    assert remote == {each.flag for each in OPTIONS.values()}
    status, out, _ = run("predict", "--help")
    assert status == 0
    assert [each.flag for each in OPTIONS.values() if each.flag not in out] == []


@pytest.mark.parametrize("name", ["--local", "--model=tiny", "--engine", "--nonsense"])
def test_an_option_that_runs_models_says_where_it_is(run: Run, name: str) -> None:
    with pytest.raises(OnlyClientError, match=f"{name.partition('=')[0]} needs pdserve itself.*pip install"):
        run("predict", "cat.jpg", name)


@pytest.mark.parametrize("name", [each for each in COMMANDS if each != "predict"])
def test_every_other_command_says_where_it_is(run: Run, name: str) -> None:
    with pytest.raises(OnlyClientError, match=f"{name} needs pdserve itself.*pip install pdserve") as caught:
        run(name, "--help")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict"], "required: PATH"),
        (["predict", "a.jpg", "--jobs", "0"], "--jobs is 0; it is at least 1 and at most 256"),
        (["predict", "a.jpg", "--top-k", "two"], "--top-k is 'two', and no number"),
        (["predict", "a.jpg", "--timeout", "nan"], "--timeout is nan; it is at least 0.001"),
        (["predict", "a.jpg", "--service", "shop"], "'shop' is not one of classification, recognition"),
        (["predict", "a.jpg", "--url"], "expected one argument"),
        (["predict", "a.jpg", "--url", "nowhere"], "'nowhere' is not of the form"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(run: Run, words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        run(*words)
    assert not isinstance(caught.value, OnlyClientError)


def test_a_picture_needs_the_modules_that_draw(
    run: Run, images: list[Path], tiny_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdserve.commands.remote.find_spec", lambda name: None)
    with pytest.raises(PdserveError, match=r"--draw needs pdserve itself.*pip install pdserve"):
        run("predict", images[0], "--url", tiny_server.url, "--draw", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_help_and_version(run: Run) -> None:
    assert run("--version") == (0, f"pdserve-client {__version__}\n", "")
    assert run() == run("--help")
    assert "pdserve-client predict" in run("--help")[1]
