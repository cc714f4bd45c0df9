"""``pdserve run``: the whole way from a name to answers, and the command that serves it."""

import json
from pathlib import Path
from typing import get_args

import pytest

from pdserve.formats.inference_yml import Task
from pdserve.pipelines import SERVICES, TASKS
from tests.model_host import put_in_folder
from tests.running import pdserve
from tests.tiny import build_embedder, build_inference_model, picture

NAME = "ResNet50_vd"


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{name}.png" for name in ("red", "green")]
    for path, color in zip(paths, ((255, 0, 0), (0, 255, 0)), strict=True):
        path.write_bytes(picture(color))
    return [str(path) for path in paths]


def test_an_empty_home_gets_the_model_and_answers(tmp_path: Path, pictures: list[str]) -> None:
    put_in_folder(tmp_path / "mirror", NAME)
    home, variables = tmp_path / "home", {"PDSERVE_MIRROR": str(tmp_path / "mirror"), "PDSERVE_OFFLINE": "1"}
    done = pdserve(home, "run", NAME, *pictures, "--top-k", "1", **variables)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [f"{each}:" for each in pictures]
    assert [line.split()[-1] for line in lines if line.startswith(" ")] == ["red", "green"]
    said = done.stderr.splitlines()
    assert said[-1] == f"Next: pdserve serve classification --model {NAME}"
    steps = [line.split(",")[0] for line in said if ": fetched" in line or ": converted" in line]
    assert [step.split()[1] for step in steps] == ["fetched", "converted"]

    again = pdserve(home, "run", NAME, pictures[0], "--json", **variables)
    assert again.stderr.splitlines() == [f"Next: pdserve serve classification --model {NAME}"]
    assert json.loads(again.stdout)["labels"][0]["label"] == "red"


def test_a_folder_of_any_name_as_it_was_exported(tmp_path: Path, pictures: list[str]) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    build_inference_model(folder)
    done = pdserve(tmp_path / "home", "run", str(folder), pictures[0], "--draw", str(tmp_path / "drawn"))
    assert done.returncode == 0, done.stderr
    assert "red" in done.stdout.splitlines()[1]
    assert done.stderr.splitlines()[-1] == f"Next: pdserve serve classification --model '{folder}'"
    assert len(list((tmp_path / "drawn").iterdir())) == 1
    # What is kept of it: that this engine has run it.
    assert [each.name for each in (tmp_path / "home").iterdir()] == ["trials"]


def test_an_embedder_is_answered_by_its_service(tmp_path: Path, pictures: list[str]) -> None:
    build_embedder(tmp_path / "models", "mine")
    done = pdserve(tmp_path, "run", "mine", pictures[0])
    assert done.stdout.splitlines()[1] == "  3 numbers: 1.0000 0.0000 0.0000"
    assert done.stderr.splitlines()[-1] == "Next: pdserve serve embedding --model mine"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("ResNet50vd",), 1, "did you mean ResNet50_vd"),
        (("drink_dataset_v1.0",), 1, "is a data set"),
        (("./none",), 1, "'./none', which is a path"),
        ((NAME, "--offline"), 1, f"type `pdserve fetch {NAME}` where it is allowed"),
        (("classification", "--index", "drinks"), 2, "--index goes with --service recognition"),
    ],
)
def test_what_cannot_be_run(
    tmp_path: Path, pictures: list[str], arguments: tuple[str, ...], code: int, words: str
) -> None:
    name, *options = arguments
    done = pdserve(tmp_path / "home", "run", name, pictures[0], *options)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_every_task_has_its_service() -> None:
    assert set(TASKS) == set(get_args(Task))
    assert set(TASKS.values()) <= set(SERVICES)
