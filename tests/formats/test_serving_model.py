"""Opening a model's folder: a serving model, or an inference model as it was exported."""

from pathlib import Path

import pytest

from pdserve.errors import ModelError
from pdserve.formats.serving_model import alias_command, open_serving_model
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


def test_a_model_opened_in_place_is_served_as_the_service_needs_it(tmp_path: Path) -> None:
    """Where its description says no task. A serving model has its aliases in a file, and keeps them."""
    source = tmp_path / "mine_infer"
    source.mkdir()
    build_inference_model(source)
    (source / "inference.yml").unlink()
    found = open_serving_model(source).served_as("classification")
    assert [v.alias for v in (*found.config.feeds, *found.config.fetches)] == ["image", "prediction"]
    found = open_serving_model(source).served_as("embedding")
    assert [v.alias for v in (*found.config.feeds, *found.config.fetches)] == ["x", "features"]
    (source / "inference.yml").write_text("PostProcess: {NormalizeFeatures: null}", "utf-8")
    said = open_serving_model(source)
    assert said.served_as("classification") is said
    converted = build_embedder(tmp_path)
    assert converted.served_as("classification") is converted


def test_the_command_that_gives_aliases(tmp_path: Path) -> None:
    build_serving_model(tmp_path, "mine")
    assert alias_command(tmp_path / "mine_serving", ["x=image"], ["y=z"]) == (
        f"pdserve alias {tmp_path}/mine_serving --feed x=image --fetch y=z"
    )
    assert alias_command(tmp_path / "mine_infer", ["x=image"], ["y=z"]) == (
        f"pdserve convert --dirname {tmp_path}/mine_infer --serving-server mine_serving "
        "--serving-client mine_client --feed-alias x=image --fetch-alias y=z"
    )


def test_what_is_known_to_be_wrong_in_a_public_file_does_not_count(tmp_path: Path) -> None:
    """Only under the public name: an own detector's file is right."""
    name = "picodet_PPLCNet_x2_5_mainbody_lite_v1.0"
    for folder, labels in ((f"{name}_infer", None), ("mine", ("person",))):
        (tmp_path / folder).mkdir()
        build_inference_model(tmp_path / folder)
        (tmp_path / folder / "inference.yml").write_text("arch: GFL\nlabel_list: [person]\n", "utf-8")
        found = open_serving_model(tmp_path / folder).description
        assert (found.task, found.labels) == ("detection", labels)
