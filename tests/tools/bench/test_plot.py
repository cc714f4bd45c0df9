import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pdserve.errors import UsageError
from pdserve.tools.bench import Load
from pdserve.tools.bench.report import check_plot, plot
from tests.extras import import_or_skip
from tests.tools.bench.runs import a_run


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_picture_of_several_routes(tmp_path: Path, suffix: str) -> None:
    import_or_skip("matplotlib", "plot")
    path = tmp_path / f"load{suffix}"
    check_plot(path)
    runs = [
        a_run([0.01 * n] * (10 * n), route=route, load=Load(clients=n))
        for route in ("v1", "grpc")
        for n in (1, 8)
    ]
    plot([*runs, a_run([], route="json")], path)
    if suffix == ".png":
        with Image.open(path) as picture:
            assert picture.size == (1350, 750)
            assert np.asarray(picture).std() > 5
    else:
        assert "<svg" in path.read_text("utf-8")


def test_a_run_with_failures_is_told_apart(tmp_path: Path) -> None:
    import_or_skip("matplotlib", "plot")
    import matplotlib

    path = tmp_path / "load.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot([a_run([0.01] * 10)], path)
        assert "hollow" not in path.read_text("utf-8")
        plot([a_run([0.01] * 10), a_run([0.01] * 10, errors={"timeout": 1})], path)
    assert "hollow" in path.read_text("utf-8")


def test_runs_without_answers(tmp_path: Path) -> None:
    import_or_skip("matplotlib", "plot")
    plot([a_run([])], tmp_path / "none.png")
    assert (tmp_path / "none.png").stat().st_size


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"\.png"):
        check_plot(tmp_path / "load.gif")
    with pytest.raises(UsageError, match="no folder"):
        check_plot(tmp_path / "gone" / "load.png")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "matplotlib" else found(name, *more)
    )
    with pytest.raises(UsageError, match=r'pip install "pdserve\[plot\]"'):
        check_plot(tmp_path / "load.png")
