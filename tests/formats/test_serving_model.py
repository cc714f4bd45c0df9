"""Opening a model's folder: a serving model, or an inference model as it was exported."""

from pathlib import Path

import pytest

from pdserve.errors import ModelError
from pdserve.formats.serving_model import open_serving_model
from tests.tiny import build_embedder, build_inference_model, build_serving_model


def test_an_inference_model_is_opened_in_place(tmp_path: Path) -> None:
    """The same feeds, fetches and aliases as its serving model has, and nothing is written."""
    source = tmp_path / "mine_infer"
    source.mkdir()
    build_inference_model(source)
    before = sorted(path.name for path in source.iterdir())
    found = open_serving_model(source)
    assert (found.name, found.converted, found.description.task) == ("mine", False, "classification")
    assert [v.alias for v in (*found.config.feeds, *found.config.fetches)] == ["image", "prediction"]
    assert sorted(path.name for path in source.iterdir()) == before
    served = build_serving_model(tmp_path / "home", "mine")
    assert served.converted
    assert served.config == found.config
    assert served.description.labels == found.description.labels == ("red", "green", "blue")


def test_the_name_is_the_folders_without_its_ending(tmp_path: Path) -> None:
    build_serving_model(tmp_path, "mine")
    for folder, name in (("mine_infer", "mine"), ("mine_serving", "mine")):
        assert open_serving_model(tmp_path / folder).name == name
    (tmp_path / "mine_infer").rename(tmp_path / "cups")
    assert open_serving_model(tmp_path / "cups").name == "cups"


def test_a_model_that_says_no_task_keeps_its_names(tmp_path: Path) -> None:
    embedder = build_embedder(tmp_path)
    found = open_serving_model(tmp_path / "tiny_embedder_infer")
    assert found.description.task is None
    assert [v.alias for v in found.config.feeds] == ["x"]
    assert found.config.fetches[0].alias == found.config.fetches[0].name == embedder.config.fetches[0].name


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no serving model at .*none"):
        open_serving_model(tmp_path / "none")
    with pytest.raises(ModelError, match=r"no serving model.*has no model.*pdserve convert"):
        open_serving_model(tmp_path)


def test_a_description_is_read_once(tmp_path: Path) -> None:
    model = build_serving_model(tmp_path)
    first = model.description
    (tmp_path / "tiny_serving" / "inference.yml").write_text("a: [", "utf-8")
    assert model.description is first
    with pytest.raises(ModelError, match="Cannot read"):
        _ = open_serving_model(model.path).description
