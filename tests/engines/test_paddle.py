"""oneDNN, which fails on some programs of Paddle 3, is left out for those alone, and that is said."""

from pathlib import Path

import pytest

from pdserve.engines import PROBE_DETECTOR, Device, Engine, Options, load
from pdserve.errors import SettingsError, UnsupportedModelError
from tests.engines.models import BOTH, PIR, needs, serving_model, warm_up
from tests.engines.pir_programs import PirProgram, write_suppression

pytestmark = [needs("paddle"), pytest.mark.full]

FAILS = "without oneDNN (it fails on this program: ConvertPirAttribute2RuntimeAttribute not support"


def opened(folder: Path, instances: int = 1, **options: bool) -> Engine:
    return load(
        serving_model(folder),
        engine="paddle",
        device=Device(),
        instances=instances,
        options=Options(**options),
    )


@pytest.mark.parametrize("instances", [1, 2])
def test_a_detector_runs_without_it(instances: int) -> None:
    engine = opened(PROBE_DETECTOR, instances)
    assert FAILS in engine.description
    assert "DoubleAttribute" in engine.description
    for _ in range(instances):
        warm_up(engine, batch=2)
    engine.close()


@pytest.mark.parametrize(
    "folder", [PIR, BOTH / "embedder/pir", BOTH / "detector/pdmodel", BOTH / "boxes/pdmodel"], ids=str
)
def test_others_run_with_it(folder: Path) -> None:
    engine = opened(folder)
    assert "on CPU with oneDNN" in engine.description
    warm_up(engine)
    engine.close()


def test_asked_for_it_is_an_error() -> None:
    with pytest.raises(SettingsError, match=r"DoubleAttribute.*leave out use_mkldnn: True"):
        opened(PROBE_DETECTOR, use_mkldnn=True)


def test_parameters_in_a_file_each(tmp_path: Path) -> None:
    """In memory, as a ProgramDesc of this form is given to it, Paddle dies of it."""
    folder = write_suppression(tmp_path / "m", (-1, 6, 4), (-1, 1, 6))
    (folder / "inference.pdiparams").rename(folder / "zero")
    engine = opened(folder)
    warm_up(engine)
    engine.close()


def test_a_program_without_parameters_is_refused(tmp_path: Path) -> None:
    program = PirProgram()
    program.fetch(program.scale(program.feed("x", (-1, 2)), 2.0))
    with pytest.raises(UnsupportedModelError, match="m, which has no parameters"):
        opened(program.write(tmp_path / "m"))


def test_left_out_by_the_user_nothing_is_said() -> None:
    engine = opened(PROBE_DETECTOR, use_mkldnn=False)
    assert "oneDNN" not in engine.description
    warm_up(engine)
    engine.close()
