import io
import json
from pathlib import Path

import pytest

from pdserve import console
from pdserve.answers import FoundMatch, FoundObject, Label
from pdserve.errors import DeviceError, ImageError, UsageError
from pdserve.predict import Outcome, Picture

LABELS = [Label(7, "Egyptian cat", 0.93), Label(12, "猫", 0.05)]

Captured = pytest.CaptureFixture[str]


def narrow(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """A standard output and error of a code page with few characters, as Windows consoles have them."""
    raw = io.BytesIO()
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}", io.TextIOWrapper(raw, "cp1252", write_through=True))
    return raw


def test_a_json_line(capsys: Captured):
    console.json_line({"label": "猫", "path": 'a"b\nc'})
    console.json_line({"n": 1})
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == [{"label": "猫", "path": 'a"b\nc'}, {"n": 1}]
    assert "猫" in out
    assert err == ""


def test_a_json_line_where_there_are_few_characters(monkeypatch: pytest.MonkeyPatch):
    raw = narrow(monkeypatch)
    console.json_line({"image": "猫 é 😀.jpg"})
    assert json.loads(raw.getvalue()) == {"image": "猫 é 😀.jpg"}


def test_a_name_that_is_no_text(monkeypatch: pytest.MonkeyPatch):
    """A file's name in another encoding comes as lone surrogates."""
    raw = narrow(monkeypatch)
    console.json_line({"image": "\udce9.jpg"})
    assert json.loads(raw.getvalue()) == {"image": "\udce9.jpg"}


def test_text_where_there_are_few_characters(monkeypatch: pytest.MonkeyPatch):
    raw = narrow(monkeypatch)
    console.line("é: 猫")
    console.say("猫")
    assert raw.getvalue().decode("cp1252").splitlines() == [r"é: \u732b", r"\u732b"]


def test_answers_and_talk_go_to_different_streams(capsys: Captured):
    console.line("answer")
    console.say("talk")
    assert capsys.readouterr() == ("answer\n", "talk\n")


def test_a_table(capsys: Captured):
    console.table(("name", "score"), [("[bold]cat", 0.5), ("dog", 10.25)], title="Pets")
    out, err = capsys.readouterr()
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[0] == "Pets"
    assert any(line.split() == ["name", "score"] for line in lines)
    cat, dog = (next(line for line in lines if word in line) for word in ("cat", "dog"))
    assert cat.split() == ["[bold]cat", "0.5000"]
    assert len(cat) == len(dog)  # numbers end in one column
    assert err == ""


def test_a_table_in_a_pipe_is_not_folded(capsys: Captured):
    """What is to be typed can be copied."""
    command = 'pip install "pdserve[paddle-gpu]" ' * 9
    console.table(("what", "type"), [("paddle", command)])
    assert command.strip() in capsys.readouterr().out


def test_an_empty_table(capsys: Captured):
    console.table(("name", "score"), [])
    assert "name" in capsys.readouterr().out


def test_an_outcome_as_json(capsys: Captured, tmp_path: Path):
    console.outcome(Outcome("cat.jpg", b"", LABELS), None, as_json=True)
    console.outcome(Outcome("cat.jpg", b"", LABELS[:1]), Picture(tmp_path / "cat.png", ()), as_json=True)
    console.outcome(Outcome("no.jpg", None, ImageError("No image.")), None, as_json=True)
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == [
        {
            "image": "cat.jpg",
            "labels": [
                {"class_id": 7, "label": "Egyptian cat", "score": 0.93},
                {"class_id": 12, "label": "猫", "score": 0.05},
            ],
        },
        {
            "image": "cat.jpg",
            "labels": [{"class_id": 7, "label": "Egyptian cat", "score": 0.93}],
            "picture": str(tmp_path / "cat.png"),
        },
        {"image": "no.jpg", "error": "No image."},
    ]
    assert err == ""


def test_an_outcome_for_a_person(capsys: Captured, tmp_path: Path):
    console.outcome(Outcome("cat.jpg", b"", LABELS), Picture(tmp_path / "cat.png", ()), as_json=False)
    out, err = capsys.readouterr()
    head, *labels, picture = out.splitlines()
    assert head == "cat.jpg:"
    assert [line.split(maxsplit=2) for line in labels] == [
        ["0.9300", "7", "Egyptian cat"],
        ["0.0500", "12", "猫"],
    ]
    assert picture.strip() == str(tmp_path / "cat.png")
    assert err == ""


def test_no_label_is_said(capsys: Captured):
    console.outcome(Outcome("cat.jpg", b"", []), None, as_json=False)
    assert capsys.readouterr().out == "cat.jpg:\n  no label\n"


def test_a_failed_image_is_talk(capsys: Captured):
    console.outcome(Outcome("no.jpg", None, ImageError("No image.")), None, as_json=False)
    assert capsys.readouterr() == ("", "no.jpg: No image.\n")


def test_an_error_is_one_sentence_and_a_code(capsys: Captured, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PDSERVE_DEBUG", raising=False)
    assert console.failed(DeviceError("No GPU.")) == 1
    assert console.failed(UsageError("No such option.")) == 2
    assert capsys.readouterr() == ("", "pdserve: No GPU.\npdserve: No such option.\n")


def test_the_traceback_is_there_for_those_who_ask(capsys: Captured, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PDSERVE_DEBUG", "1")
    try:
        raise DeviceError("No GPU.")
    except DeviceError as error:
        console.failed(error)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" in err
    assert "test_console.py" in err
    assert err.endswith("pdserve: No GPU.\n")


def test_bars_are_silent_where_nobody_watches(capsys: Captured):
    with console.image_bars() as bars:
        bars.start("predicting", 100, 0)
        for _ in range(100):
            bars.advance("predicting")
    with console.download_bars() as bars:
        bars.start("a", 100, 0)
        bars.advance("a", 100)
        bars.note("a", "again in 2 s")
        bars.done("a")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.split() == ["a:", "again", "in", "2", "s"]


def test_found_objects(capsys: pytest.CaptureFixture[str]) -> None:
    one = FoundObject((1, 2, 30, 40), "茶", 0.5, (FoundMatch("茶", "tea/0.jpg", 0.5),))
    two = FoundObject((0, 0, 9, 9), "cola", 0.9, (FoundMatch("cola", "c", 0.9), FoundMatch("茶", "t", 0.2)))
    outcome = Outcome("a.jpg", b"", [one, two], "objects")
    console.outcome(outcome, None, as_json=True)
    first, second = json.loads(capsys.readouterr().out)["objects"]
    assert first == {"bbox": [1, 2, 30, 40], "label": "茶", "score": 0.5}
    assert [match["label"] for match in second["matches"]] == ["cola", "茶"]
    console.outcome(outcome, None, as_json=False)
    assert "1 2 30 40  茶" in capsys.readouterr().out


def test_what_no_font_could_write_is_said(capsys: Captured, tmp_path: Path):
    picture = Picture(tmp_path / "cat.png", ("1: 猫 0.93", "No font has these."))
    console.outcome(Outcome("cat.jpg", b"", LABELS), picture, as_json=True)
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert err.splitlines() == ["  1: 猫 0.93", "  No font has these."]
