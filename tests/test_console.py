import io
import json

import pytest

from pdserve import console
from pdserve.errors import DeviceError, UsageError

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


def test_a_table_in_a_pipe_has_no_trailing_blanks(capsys: Captured):
    console.table(("", ""), [("a", "x" * 300), ("b", "é"), ("c", "")], title="T")
    console.table(("name", "n"), [("cat", 1), ("a dog", None)])
    out, _ = capsys.readouterr()
    assert out.split("\n")[:4] == ["T", "a  " + "x" * 300, "b  é", "c"]
    assert out.split("\n")[4:] == ["name   n", "────────", "cat    1", "a dog  -", ""]


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


def test_digits_by_column(capsys: Captured):
    console.table(("MB", "accuracy"), [(21.44, 77.777), (None, 5.0)], digits={"MB": 1, "accuracy": 2})
    assert [line.split() for line in capsys.readouterr().out.splitlines()[2:]] == [
        ["21.4", "77.78"],
        ["-", "5.00"],
    ]


def test_columns_that_may_be_dropped_stay_in_a_pipe(capsys: Captured):
    console.table(("name", "family"), [("x" * 200, "y" * 200)], drop=("family",))
    assert "family" in capsys.readouterr().out


def test_an_empty_table(capsys: Captured):
    console.table(("name", "score"), [])
    assert "name" in capsys.readouterr().out


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


HOSTILE = "\x1b]0;owned\x07a\x9b2Jb\nforged\u202egnp.exe\u2066\u2028\x7f\udce9"
ESCAPED = r"\x1b]0;owned\x07a\x9b2Jb\nforged\u202egnp.exe\u2066\u2028\x7f\udce9"


def test_what_drives_a_terminal_is_escaped(capsys: Captured):
    """In lines, notes, errors, tables and their titles; joined emoji and marks of direction are left."""
    console.line(f"  {HOSTILE}")
    console.say(HOSTILE)
    console.failed(UsageError(HOSTILE))
    console.table(("label", "n"), [(HOSTILE, 1)], title=HOSTILE)
    out, err = capsys.readouterr()
    title, head, _, row = out.splitlines()[1:]
    assert out.splitlines()[0] == f"  {ESCAPED}"
    assert (title, head.split(), row.split()) == (ESCAPED, ["label", "n"], [ESCAPED, "1"])
    assert err.splitlines() == [ESCAPED, f"pdserve: {ESCAPED}"]
    console.line("👩‍🔬 א‏ 猫")
    assert capsys.readouterr().out == "👩‍🔬 א‏ 猫\n"


def test_json_means_the_same_whatever_is_escaped(capsys: Captured):
    console.json_line({HOSTILE: [HOSTILE]})
    out, _ = capsys.readouterr()
    assert json.loads(out) == {HOSTILE: [HOSTILE]}
    assert all(char.isprintable() for char in out.removesuffix("\n"))
