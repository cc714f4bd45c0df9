"""Models from folders of this machine."""

import json
from pathlib import Path

import pytest

from pdserve.errors import DiskError, ModelError, UsageError
from pdserve.models.fetch import Fetched, fetch
from pdserve.models.home import Home
from tests.models.test_record import verify_bytes
from tests.tiny import build_inference_model


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


@pytest.fixture
def mine(tmp_path):
    folder = tmp_path / "my_model_infer"
    folder.mkdir()
    build_inference_model(folder)
    return folder


def get(folder: Path, home: Home, **options: object) -> Fetched:
    return fetch(str(folder), home, environ={"PDSERVE_OFFLINE": "1"}, **options)  # type: ignore[arg-type]


def test_a_folder_is_copied_with_a_record(mine, home):
    (mine / "labels.txt").write_text("a\nb\n", "utf-8")
    got = get(mine, home)
    assert (got.name, got.action, got.path) == ("my_model", "fetched", home.inference_model("my_model"))
    assert (got.origin, got.sha256) == (str(mine), None)
    copied = {path.name: path.read_bytes() for path in got.path.iterdir() if path.name != "fetch.json"}
    assert copied == {path.name: path.read_bytes() for path in mine.iterdir()}
    assert got.bytes == sum(map(len, copied.values()))
    record = json.loads((got.path / "fetch.json").read_text("utf-8"))
    assert (record["source"], record["origin"], record["sha256"]) == (str(mine), str(mine), None)
    assert verify_bytes(got.path) is not None
    assert get(mine, home).action == "present"


def test_only_the_models_files_are_copied(mine, home):
    (mine / "checkpoint.pdparams").write_bytes(b"x" * 1000)
    (mine / "images").mkdir()
    (mine / "images" / "0.yml").write_text("a: 1", "utf-8")
    with (mine / "huge.txt").open("wb") as file:
        file.truncate(17 << 20)
    assert {p.name for p in get(mine, home).path.iterdir()} == {
        "fetch.json",
        "inference.pdmodel",
        "inference.pdiparams",
        "inference.yml",
    }


def test_a_link_is_copied_as_its_file(mine, home, tmp_path):
    (mine / "inference.pdiparams").rename(tmp_path / "weights")
    (mine / "inference.pdiparams").symlink_to(tmp_path / "weights")
    place = get(mine, home).path / "inference.pdiparams"
    assert not place.is_symlink()
    assert place.read_bytes() == (tmp_path / "weights").read_bytes()


def test_a_folder_without_a_model(tmp_path, home):
    (tmp_path / "photos").mkdir()
    with pytest.raises(ModelError, match="has no model"):
        get(tmp_path / "photos", home)
    assert not home.inference_model("photos").exists()


def test_two_folders_of_one_name(mine, home, tmp_path):
    get(mine, home)
    other = tmp_path / "other" / "my_model"
    other.mkdir(parents=True)
    build_inference_model(other)
    with pytest.raises(
        UsageError, match=r"my_model is here already, from .*`pdserve fetch .*other.*--force`"
    ):
        get(other, home)
    assert get(other, home, force=True).origin == str(other)


def test_the_homes_own_folder_is_not_copied_to_itself(mine, home):
    path = get(mine, home).path
    with pytest.raises(UsageError, match="`pdserve convert --model my_model`"):
        get(path, home, force=True)
    assert verify_bytes(path) is not None


def test_a_full_disk_leaves_what_was_there(mine, home):
    path = get(mine, home).path
    with pytest.raises(DiskError):
        get(mine, home, force=True, free=lambda path: 10)
    assert verify_bytes(path) is not None
