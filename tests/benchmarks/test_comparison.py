import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from benchmarks import comparison
from tests.extras import import_or_skip


def a_run(server: str, speeds: dict[str, float], number: int = 1, **more: Any) -> dict[str, Any]:
    loads = {
        clients: {
            "images_per_s": speed,
            "p50_ms": 900 * int(clients) / speed,
            "p99_ms": 1000 * int(clients) / speed,
        }
        for clients, speed in speeds.items()
    }
    return {"round": number, "model": "M", "server": server, "memory_mb": 300.0, "loads": loads} | more


@pytest.fixture
def report() -> dict[str, Any]:
    return {
        "date": "2026-01-02",
        "machine": {"cores": 2, "processor": "a CPU", "python": "3.11.1"},
        "settings": {"models": ["M", "not measured"], "clients": [1, 8], "seconds": 4, "rounds": 2},
        "contenders": {
            "raw": {"title": "raw engine", "kind": "raw", "settings": "no server"},
            "one": {"title": "One", "kind": "pdserve", "settings": "as it comes"},
            "two": {"title": "Two", "kind": "rival", "settings": "`batch=8`"},
            "int8": {"title": "One INT8", "kind": "int8", "settings": "quantised"},
            "gone": {"title": "Gone", "kind": "rival", "settings": "none"},
        },
        "installed": {"one": 30.4, "two": 31.4},
        "notes": ["A note."],
        "skipped": {"Gone": "it does not install."},
        "runs": [
            a_run("raw", {"1": 50, "8": 100}),
            a_run("one", {"1": 20, "8": 40}, start_s=2.0),
            a_run("one", {"1": 22, "8": 44}, 2, start_s=1.0),
            a_run("int8", {"1": 60, "8": 90}, start_s=0.5, memory_mb=9.0),
            a_run("two", {"1": 10}, start_s=9.0)
            | {"loads": {"1": {"images_per_s": 10, "errors": {"503": 3}}, "8": {"not_offered": "too slow"}}},
        ],
    }


def test_a_figure_is_the_median_of_the_rounds(report: dict[str, Any]) -> None:
    assert comparison.figure(report, "M", "one", "loads", "8", "images_per_s") == 42
    assert comparison.figure(report, "M", "one", "start_s") == 1.5
    assert comparison.figure(report, "M", "two", "loads", "8", "images_per_s") is None


def test_the_best_of_the_servers_is_told_in_each_column(report: dict[str, Any]) -> None:
    heads, rows = comparison.rows(report, "M")
    best = {row.title: dict(zip(heads, row.best, strict=True)) for row in rows}
    cells = {row.title: dict(zip(heads, row.cells, strict=True)) for row in rows}
    assert [row.title for row in rows] == ["raw engine", "One", "Two", "One INT8"]
    assert cells["raw engine"]["8: images/s"] == "100.0"
    assert not any(best["raw engine"].values())  # it serves nobody
    assert not any(best["One INT8"].values())  # it is another model
    assert best["One"]["8: images/s"]
    assert best["One"]["start, s"]
    assert not best["Two"]["1: images/s"]
    assert cells["Two"]["8: images/s"] == comparison.NOTHING
    assert best["One"]["memory, MB"]
    assert best["Two"]["memory, MB"]  # as good as the other
    assert cells["One"]["installed, MB"] == "30"
    assert best["One"]["installed, MB"]
    assert not best["Two"]["installed, MB"]


def test_the_markdown_has_the_tables_settings_and_notes(report: dict[str, Any]) -> None:
    text = comparison.markdown(report)
    lines = text.splitlines()
    (head,) = [line for line in lines if "images/s" in line and line.startswith("|")]
    (one,) = [line for line in lines if line.startswith("| One | ") and "**" in line]
    assert one.count("|") == head.count("|") == lines[lines.index(head) + 1].count("|")
    assert "**42.0**" in one
    assert "| Two | `batch=8` |" in lines
    assert "- Two, M, 8 clients: not offered, too slow." in lines
    assert "- Two, M, 1 client: 3 × 503 in round 1." in lines
    assert "- Not measured: Gone: it does not install." in lines
    assert "- A note." in lines
    assert "not measured**" not in text  # a model without a run has no table


def test_the_terminal_has_the_same(report: dict[str, Any]) -> None:
    out = io.StringIO()
    comparison.show(report, Console(width=250, file=out))
    text = out.getvalue()
    assert "42.0" in text
    assert "it does not install" in text


def test_int8_of_random_weights_says_so(report: dict[str, Any]) -> None:
    report["random_weights"] = ["M"]
    titles = [row.title for row in comparison.rows(report, "M")[1]]
    assert titles == ["raw engine", "One", "Two", "One INT8, random weights"]


def test_the_page_gets_what_is_between_its_markers(tmp_path: Path) -> None:
    readme = tmp_path / "page.md"
    readme.write_text(f"# A\n\n{comparison.BEGIN}\nold\n{comparison.END}\n\nmore\n", "utf-8")
    comparison.put_into(readme, ["", "new", ""])
    assert readme.read_text("utf-8") == f"# A\n\n{comparison.BEGIN}\n\nnew\n\n{comparison.END}\n\nmore\n"
    readme.write_text("# A\n", "utf-8")
    with pytest.raises(ValueError, match="once each"):
        comparison.put_into(readme, ["new"])
    assert readme.read_text("utf-8") == "# A\n"


def test_the_picture(report: dict[str, Any], tmp_path: Path) -> None:
    import_or_skip("matplotlib", "plot")
    from benchmarks.comparison_plot import plot

    plot(report, tmp_path / "compare.png")
    with Image.open(tmp_path / "compare.png") as picture:
        assert picture.width > 1000
        assert np.asarray(picture).std() > 5


def test_the_page_has_the_markers() -> None:
    text = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text("utf-8")
    assert text.count(comparison.BEGIN) == text.count(comparison.END) == 1
