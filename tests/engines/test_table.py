"""A new engine is one module and one entry of the table."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest

from pdserve.engines import ENGINES, Device, available, load
from pdserve.engines.base import LoadedModel, LoadRequest
from pdserve.engines.table import EngineEntry
from pdserve.errors import DeviceError, EngineMissingError, SettingsError
from pdserve.vision.types import Array
from tests.engines.models import PROBE, serving_model, warm_up

ENTRY = EngineEntry(
    "tests.engines.test_table:open_model",
    "Answers with zeros.",
    {"cpu": ("fp32",)},
    {"numpy": ("numpy",)},
    {"cpu": "pip install numpy"},
)


def open_model(request: LoadRequest) -> LoadedModel:
    (fetch,) = request.model.config.fetches

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        (images,) = feeds.values()
        return {fetch.name: np.zeros((len(images), 10), np.float32)}

    return LoadedModel([run], "Zeros on CPU")


def test_an_entry_is_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "zeros", ENTRY)
    assert next(info for info in available() if info.name == "zeros").installed
    engine = load(serving_model(PROBE), engine="zeros", device=Device())
    assert (engine.name, engine.description, engine.reason) == ("zeros", "Zeros on CPU", "asked for")
    warm_up(engine, batch=3)
    engine.close()


def test_an_entry_says_what_the_engine_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "zeros", ENTRY)
    with pytest.raises(SettingsError, match="zeros runs fp32 on cpu, not bf16"):
        load(serving_model(PROBE), engine="zeros", device=Device(), precision="bf16")
    with pytest.raises(DeviceError, match="zeros runs on the CPU, not on gpu:0"):
        load(serving_model(PROBE), engine="zeros", device=Device("gpu"))
    missing = dataclasses.replace(ENTRY, packages={"not_installed_here": ("not-installed-here",)})
    monkeypatch.setitem(ENGINES, "zeros", missing)
    with pytest.raises(EngineMissingError, match="zeros needs not-installed-here, which is not installed"):
        load(serving_model(PROBE), engine="zeros", device=Device())


def test_auto_tries_an_entry_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, entry in list(ENGINES.items()):
        nowhere = dataclasses.replace(entry, packages={"not_installed_here": ("not-installed-here",)})
        monkeypatch.setitem(ENGINES, name, nowhere)
    monkeypatch.setitem(ENGINES, "zeros", ENTRY)
    engine = load(serving_model(PROBE), device=Device())
    assert engine.name == "zeros"
    assert engine.reason.startswith("not openvino: The engine openvino needs not-installed-here")
    engine.close()
