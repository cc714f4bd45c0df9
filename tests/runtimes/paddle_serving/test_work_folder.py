"""The folder that Paddle Serving runs in, and its export."""

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pdserve.convert import convert
from pdserve.errors import OtherEmbedderError, SettingsError, UnsupportedModelError
from pdserve.formats import prototxt
from pdserve.models.home import Home
from pdserve.pipelines import SERVICES
from pdserve.runtimes.paddle_serving import work_folder
from tests.detectors import HEIGHT, WIDTH, write_detector
from tests.running import pdserve
from tests.tiny import NAMES, build_embedder, picture

PIR = Path(__file__).parents[2] / "data" / "engines" / "pir"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


def written(home: Path, folder: Path, **flags: Any) -> dict[str, Any]:
    """Write a classifier's folder; what its service script reads."""
    folder.mkdir()
    wanted = SERVICES["classification"].settings({"model": "tiny", **flags}, {})
    made = work_folder.write(wanted, Home(home), folder, (18080, 9993), work_folder.link)
    assert made.script == "classification_web_service.py"
    content: dict[str, Any] = json.loads((folder / "service.json").read_text("utf-8"))
    return content


def test_a_classifiers_folder(tiny_home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    content = written(tiny_home, folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "classification_web_service.py",
        "config.yml",
        "images.py",
        "labels.txt",
        "pipeline_service.py",
        "service.json",
        "tiny_serving",
    ]
    assert (folder / "labels.txt").read_text("utf-8").splitlines() == list(NAMES)
    assert content["feed"] == "x"
    assert (content["threshold"], content["default_label"]) == (None, 0)
    config = yaml.safe_load((folder / "config.yml").read_text("utf-8"))
    local = config["op"]["imagenet"]["local_service_conf"]
    assert local["model_config"] == "tiny_serving"
    assert local["fetch_list"] == [content["fetch"]]


def test_aliases_are_the_models_own_names(tiny_home: Path, tmp_path: Path) -> None:
    """The local predictor looks them up by these."""
    written(tiny_home, tmp_path / "out")
    for name in (prototxt.SERVER_TEXT, prototxt.SERVER_STREAM):
        config = prototxt.read(tmp_path / "out" / "tiny_serving" / name)
        assert all(v.alias == v.name for v in (*config.feeds, *config.fetches))


@pytest.mark.parametrize("name", ["../../away", "/away", "tiny"])
def test_a_model_stays_in_the_folder_whatever_its_name(tiny_home: Path, tmp_path: Path, name: str) -> None:
    model = tmp_path / "model_serving"
    shutil.copytree(tiny_home / "models" / "tiny_serving", model)
    (model / "pdserve.json").write_text(json.dumps({"name": name}), "utf-8")
    written(tiny_home, tmp_path / "out", model=str(model))
    assert (tmp_path / "out" / f"{Path(name).name}_serving").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model_serving", "out"]


def test_models_are_linked_for_a_server(tiny_home: Path, tmp_path: Path) -> None:
    written(tiny_home, tmp_path / "out")
    for name in ("inference.pdmodel", "inference.pdiparams"):
        assert (tmp_path / "out" / "tiny_serving" / name).is_symlink()


def test_settings_of_the_results_are_kept(tiny_home: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.write_text("eins\nzwei\ndrei\n", "utf-8")
    post = {"ThreshOutput": {"threshold": 0.9, "default_label_index": 2}}
    content = written(tiny_home, tmp_path / "out", labels=labels, postprocess=post, mean=(1, 2, 3), name="n")
    assert (tmp_path / "out" / "labels.txt").read_text("utf-8") == "eins\nzwei\ndrei\n"
    assert (content["threshold"], content["default_label"], content["name"]) == (0.9, 2, "n")
    (normalize,) = (step["NormalizeImage"] for step in content["steps"] if "NormalizeImage" in step)
    assert normalize["mean"] == [1, 2, 3]


def test_answers_that_the_service_does_not_know_are_refused(tiny_home: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"MultiLabelThreshOutput.*--runtime native"):
        written(tiny_home, tmp_path / "out", postprocess={"MultiLabelThreshOutput": {"threshold": 0.5}})


def test_a_model_of_paddle_3_is_refused(tiny_home: Path, tmp_path: Path) -> None:
    model = tmp_path / "new_serving"
    shutil.copytree(tiny_home / "models" / "tiny_serving", model)
    (model / "inference.pdmodel").unlink()
    for name in ("inference.json", "inference.pdiparams"):
        shutil.copy(PIR / name, model / name)
    with pytest.raises(UnsupportedModelError, match="Paddle 3"):
        written(tiny_home, tmp_path / "out", model=str(model))


@pytest.fixture(scope="module")
def recognition_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a tiny detector, a tiny embedder and an index of theirs."""
    home = tmp_path_factory.mktemp("recognition")
    build_embedder(home / "models")
    detector = write_detector(home / "models" / "tiny_detector_infer")
    convert(detector, home / "models" / "tiny_detector_serving", home / "models" / "tiny_detector_client")
    gallery = home / "gallery"
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (gallery / name).mkdir(parents=True)
        (gallery / name / "1.png").write_bytes(picture(color))
    done = pdserve(
        home, "index", "build", "--gallery", str(gallery), "--model", "tiny_embedder", "--out", "colors"
    )
    assert done.returncode == 0, done.stderr
    return home


def recognition(home: Path, folder: Path, **flags: Any) -> dict[str, Any]:
    """Write a recognition service's folder; what its service script reads."""
    folder.mkdir()
    given = {"detector": "tiny_detector", "embedder": "tiny_embedder", "index": "colors", **flags}
    made = work_folder.write(
        SERVICES["recognition"].settings(given, {}), Home(home), folder, (18081, None), work_folder.link
    )
    assert made.script == "recognition_web_service.py"
    content: dict[str, Any] = json.loads((folder / "service.json").read_text("utf-8"))
    return content


def test_a_recognisers_folder(recognition_home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    content = recognition(recognition_home, folder, det_threshold=0.25)
    assert content["detector"]["feeds"] == {"image": "image", "scale_factor": "scale_factor"}
    assert content["detector"]["size"] == [HEIGHT, WIDTH]
    assert content["detector"]["batches"] is True
    assert content["det_threshold"] == 0.25
    # Its parameters are in no file, as it has none.
    assert sorted(path.name for path in (folder / "tiny_detector_serving").iterdir())[0] == "__model__"
    entries = pickle.loads((folder / "index" / "id_map.pkl").read_bytes())
    assert sorted(entry.split("\t")[1] for entry in entries.values()) == ["blue", "red"]
    assert (folder / "index" / "vector.index").is_file()
    config = yaml.safe_load((folder / "config.yml").read_text("utf-8"))
    assert list(config["op"]) == ["det", "rec"]
    assert "rpc_port" not in config  # Paddle Serving takes any


def test_without_a_detector_there_is_one_operator(recognition_home: Path, tmp_path: Path) -> None:
    content = recognition(recognition_home, tmp_path / "out", detector="none")
    assert content["detector"] is None
    config = yaml.safe_load((tmp_path / "out" / "config.yml").read_text("utf-8"))
    assert list(config["op"]) == ["rec"]


def test_an_index_of_another_embedder_is_refused(recognition_home: Path, tmp_path: Path) -> None:
    other = recognition_home / "models" / "other_serving"
    shutil.copytree(recognition_home / "models" / "tiny_embedder_serving", other)
    (other / "inference.yml").write_text(
        (other / "inference.yml").read_text("utf-8").replace("- 32", "- 16"), "utf-8"
    )
    with pytest.raises(OtherEmbedderError, match="colors"):
        recognition(recognition_home, tmp_path / "out", embedder=str(other))


def test_an_export_stands_by_itself(tiny_home: Path, tmp_path: Path) -> None:
    out = tmp_path / "service"
    done = pdserve(tiny_home, "export", "paddle-serving", "--out", str(out), "--model", "tiny", "--gpu", "0")
    assert done.returncode == 0, done.stderr
    assert not any(path.is_symlink() for path in out.rglob("*"))
    readme = (out / "README.md").read_text("utf-8")
    assert len(readme.splitlines()) == 3
    assert "python3 classification_web_service.py" in readme
    local = yaml.safe_load((out / "config.yml").read_text("utf-8"))["op"]["imagenet"]["local_service_conf"]
    assert (local["device_type"], local["devices"]) == (1, "0")
    assert [path.name for path in tmp_path.iterdir()] == ["service"]

    again = pdserve(tiny_home, "export", "paddle-serving", "--out", str(out), "--model", "tiny", "--json")
    assert json.loads(again.stdout)["path"] == str(out)
    local = yaml.safe_load((out / "config.yml").read_text("utf-8"))["op"]["imagenet"]["local_service_conf"]
    assert local["device_type"] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--index", "colors"), "--index goes with --service recognition"),
        (("--service", "recognition", "--labels", "a"), "--labels goes with --service classification"),
        (("--model", "tiny", "--http-port", "0"), "port of 0"),
        (("--model", "none"), "no serving model 'none'"),
    ],
)
def test_an_export_that_cannot_be_is_told(
    tiny_home: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    done = pdserve(tiny_home, "export", "paddle-serving", "--out", str(tmp_path / "out"), *options)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_export_does_not_replace_what_is_something_else(tiny_home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("dear", "utf-8")
    for out in (tmp_path, tmp_path / "mine"):
        done = pdserve(tiny_home, "export", "paddle-serving", "--out", str(out), "--model", "tiny")
        assert done.returncode == 2
        assert "give --out another name" in done.stderr
    assert (tmp_path / "mine").read_text("utf-8") == "dear"
