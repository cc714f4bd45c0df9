"""Names and paths: which folder is opened, and what is said where there is none."""

from pathlib import Path

import pytest

from pdserve.errors import ModelError
from pdserve.models.find import conversion_state, convert_fetched, find_serving_model, open_model
from pdserve.models.home import Home, is_path
from tests.tiny import build_inference_model, build_serving_model


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    build_serving_model(home.models)
    return home


def test_a_name_is_one_of_the_home(home: Home) -> None:
    for wanted in ("tiny", "tiny_serving"):
        assert find_serving_model(wanted, home) == home.serving_model("tiny")
    assert open_model("tiny", home).name == "tiny"


def test_a_path_is_one_beside_the_configuration_too(home: Home, tmp_path: Path) -> None:
    build_serving_model(tmp_path / "conf")
    assert find_serving_model("./tiny_serving", home, tmp_path / "conf") == tmp_path / "conf/tiny_serving"
    assert find_serving_model(str(tmp_path / "conf/tiny_serving"), home) == tmp_path / "conf/tiny_serving"


@pytest.mark.parametrize("wanted", ["/no/such/path/tiny_serving", "./tiny", "../tiny_serving", "models/tiny"])
def test_a_path_that_is_not_there_is_no_name(home: Home, wanted: str) -> None:
    with pytest.raises(ModelError, match="is a path; for tiny of pdserve's home or catalog give its name"):
        open_model(wanted, home)
    with pytest.raises(ModelError, match="is a path; check the path"):
        open_model(f"{wanted}_none", home)


def test_an_unknown_name_gets_the_nearest_ones(home: Home) -> None:
    with pytest.raises(ModelError, match="did you mean ResNet50_vd"):
        open_model("ResNet50vd", home)


def test_a_known_name_gets_the_commands_that_bring_it(home: Home) -> None:
    with pytest.raises(ModelError, match="`pdserve fetch ResNet50_vd` and `pdserve convert --model ResNet50"):
        open_model("ResNet50_vd", home)
    build_inference_model_in(home.inference_model("ResNet50_vd"))
    with pytest.raises(ModelError, match="not converted; type `pdserve convert --model ResNet50_vd`"):
        open_model("ResNet50_vd", home)


def build_inference_model_in(folder: Path) -> None:
    folder.mkdir(parents=True)
    build_inference_model(folder)


def test_what_is_a_path() -> None:
    assert all(map(is_path, ("./x", "a/b", "/x", "..", ".", "x/", "~/x")))
    assert not any(map(is_path, ("x", "PP-HGNetV2-B0", "a.b_serving", "")))


def test_the_state_of_a_conversion(home: Home) -> None:
    source = home.inference_model("own")
    assert conversion_state("own", home) == "missing"
    build_inference_model_in(source)
    serving = convert_fetched("own", home).path
    assert conversion_state("own", home) == "current"
    (source / "inference.pdmodel").touch()  # another time, the same content
    assert conversion_state("own", home) == "current"
    with (source / "inference.yml").open("a") as file:
        file.write("# another\n")
    assert conversion_state("own", home) == "stale"
    report = serving / ".pdserve/int8/report.json"
    report.parent.mkdir(parents=True)
    report.write_text("{}")
    assert conversion_state("own", home) == "edited"
    report.unlink()
    prototxt = serving / "serving_server_conf.prototxt"
    prototxt.write_text(prototxt.read_text().replace('alias_name: "image"', 'alias_name: "mine"'))
    assert conversion_state("own", home) == "edited"


@pytest.mark.parametrize("note", ["", "{", "[]", '{"name": "own"}', '{"source": {"a": {}}, "written": {}}'])
def test_a_conversion_without_a_usable_note_is_current(home: Home, note: str) -> None:
    (home.serving_model("tiny") / "pdserve.json").write_text(note)
    (home.inference_model("tiny") / "inference.yml").write_text("")
    assert conversion_state("tiny", home) == "current"
