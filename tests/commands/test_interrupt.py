"""Ctrl-C at a terminal: exit code 130, no traceback, one sentence on what is kept and how to go on."""

import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.file_server import Fault, serve
from tests.model_host import address_path
from tests.running import Server
from tests.terminal import Interrupted
from tests.tiny import picture

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminal of this kind")

NAME = "ResNet50_vd"


@pytest.fixture
def silent() -> Iterator[str]:
    """Where somebody listens and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(12):
        (folder / f"{n:02}.png").write_bytes(picture((250 - n, 10, 10)))
    return folder


def ended(command: Interrupted, *sentences: str) -> None:
    """Ends by 130, and the last sentence that is on the terminal is one of these, and the only one."""
    seen = command.end()
    assert "Traceback" not in seen.raw
    said = " ".join(line for line in seen.screen if not line.startswith("predicting"))
    assert seen.returncode == 130, said
    assert any(re.fullmatch(each, said) for each in sentences), said


@pytest.mark.parametrize("times", [1, 2])
def test_a_silent_server_is_not_waited_for(tiny_home: Path, photos: Path, silent: str, times: int) -> None:
    command = Interrupted(tiny_home, "predict", str(photos), "--url", silent, "--service", "classification")
    command.until("predicting")
    command.press(times)
    ended(
        command,
        r"pdserve: Interrupted before the first answer; the same command starts again\.",
        r"pdserve: Interrupted; answers that are printed are whole; the same command starts again\.",
    )


@pytest.mark.parametrize("buffered", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_answers_that_came_are_whole(
    tiny_home: Path, tiny_server: Server, photos: Path, tmp_path: Path, buffered: dict[str, str]
) -> None:
    """They are on the terminal as they come; what is said names the first image without an answer."""
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)  # the third image never comes
    images = (str(photos / "00.png"), str(photos / "01.png"), str(pipe))
    command = Interrupted(tiny_home, "predict", *images, "--url", tiny_server.url, **buffered)
    command.until("blue", 2)
    command.press()
    seen = command.end()
    assert seen.returncode == 130
    # Without spaces: a long path is cut where the screen ends.
    words = "".join("".join(seen.screen).split())
    # The signal may come when the second answer is on the screen and not counted yet.
    said = [
        f"Interrupted after {count} of 3 images; their answers are whole. "
        f"Ask again for those from {image} on."
        for count, image in ((1, images[1]), (2, images[2]))
    ]
    assert words.endswith(tuple("".join(each.split()) for each in said)), words


def test_what_came_of_a_download_is_kept(tmp_path: Path) -> None:
    with serve() as host:
        host.put(address_path(NAME), bytes(300_000), faults=[Fault(stop=200_000, linger=True)])
        command = Interrupted(tmp_path, "fetch", NAME, PDSERVE_MIRROR=host.url)
        command.until("200.0")
        command.press()
        ended(
            command,
            r".*pdserve: Interrupted; the [\d.]+ kB that came are kept, and the same command goes on\.",
        )


@pytest.mark.full
@pytest.mark.parametrize(
    ("arguments", "words", "sentence"),
    [
        (
            ("tune", "--model", "tiny", "--seconds", "2", "--clients", "1"),
            "left]",
            r".*pdserve: Interrupted; nothing is decided, and nothing written[.;].*",
        ),
        (("bench", "URL", "--duration", "60"), "at http", r".*pdserve: Interrupted; the figures are .*"),
    ],
)
def test_other_commands(
    tiny_home: Path, tiny_server: Server, arguments: tuple[str, ...], words: str, sentence: str
) -> None:
    given = [tiny_server.url if each == "URL" else each for each in arguments]
    command = Interrupted(tiny_home, *given)
    command.until(words)
    command.press()
    ended(command, sentence)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    "arguments",
    [("doctor",), ("serve", "classification", "--model", "tiny"), ("fetch", "--list"), ("index", "build")],
)
def test_the_first_second(tmp_path: Path, arguments: tuple[str, ...], times: int) -> None:
    """Between the import of what takes Ctrl-C over, and the command itself."""
    command = Interrupted(tmp_path, *arguments, PYTHONPROFILEIMPORTTIME="1")
    command.until("typer.main")
    command.press(times)
    seen = command.end()
    assert seen.returncode == 130
    said = [line for line in seen.screen if not line.startswith("import time:")]
    assert said == ["pdserve: Interrupted; nothing was done yet; type the same command to start again."]
