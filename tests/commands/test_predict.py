import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pdserve.answers import FoundMatch, FoundObject, Label
from pdserve.commands.images import Source, find_sources
from pdserve.commands.predict import _local_kind, open_local
from pdserve.commands.remote import Outcome, Picture, draw_answer, predict_all, show
from pdserve.errors import ClientError, ImageError, UnreachableError, UsageError
from pdserve.models.home import Home
from pdserve.pipelines import SERVICES
from tests.tiny import expected, picture

Captured = pytest.CaptureFixture[str]

CLASSIFICATION, RECOGNITION = SERVICES["classification"], SERVICES["recognition"]
CATS = [Label(7, "Egyptian cat", 0.93), Label(12, "猫", 0.05)]
LABELS = [Label(0, "cat", 0.5)]


def sources(count: int) -> list[Source]:
    return [Source(str(i), lambda i=i: str(i).encode()) for i in range(count)]  # type: ignore[misc]


def echo(image: bytes) -> list[Label]:
    return [Label(int(image), image.decode(), 1.0)]


def test_answers_keep_the_order_of_the_sources():
    def slow_first(image: bytes) -> list[Label]:
        time.sleep(0.03 if int(image) % 4 == 0 else 0)
        return echo(image)

    found = list(predict_all(sources(21), slow_first, jobs=4))
    assert found == [Outcome(str(i), str(i).encode(), [Label(i, str(i), 1.0)]) for i in range(21)]


def test_several_are_in_flight():
    together = threading.Barrier(3, timeout=10)

    def meet(image: bytes) -> list[Label]:
        together.wait()
        return echo(image)

    assert len(list(predict_all(sources(6), meet, jobs=3))) == 6


@pytest.mark.parametrize("count", [0, 1, 2, 7])
@pytest.mark.parametrize("jobs", [1, 4])
def test_all_are_answered(count: int, jobs: int):
    assert [x.name for x in predict_all(sources(count), echo, jobs)] == [str(i) for i in range(count)]


def test_one_that_fails_leaves_the_others_alone(tmp_path: Path):
    def some(image: bytes) -> list[Label]:
        if image == b"1":
            raise ClientError("no")
        return echo(image)

    missing = find_sources([str(tmp_path / "none.jpg")])
    first, second, third, fourth = predict_all([*sources(3), *missing], some, jobs=2)
    assert isinstance(second.answer, ClientError)
    assert second.data == b"1"
    assert isinstance(fourth.answer, ImageError)
    assert fourth.data is None
    assert (first.answer, third.answer) == (echo(b"0"), echo(b"2"))


def test_nobody_there_ends_it_all():
    asked = []

    def nobody(image: bytes) -> list[Label]:
        asked.append(image)
        raise UnreachableError("nobody")

    with pytest.raises(UnreachableError):
        list(predict_all(sources(500), nobody, jobs=2))
    assert len(asked) < 20


def test_reading_ahead_is_bounded():
    read = []

    def reader(i: int) -> Source:
        return Source(str(i), lambda: read.append(i) or str(i).encode())  # type: ignore[func-returns-value]

    answers = predict_all([reader(i) for i in range(100)], echo, jobs=2)
    next(answers)
    time.sleep(0.1)
    assert len(read) <= 6
    answers.close()  # type: ignore[attr-defined]
    time.sleep(0.05)
    assert len(read) <= 6


def test_local(tiny_home: Path):
    flags = {"model": "tiny", "top_k": 1, "threads": 1}
    with open_local("classification", flags, {}, Home(tiny_home)) as ask:
        (label,) = ask(picture((0, 255, 0)))
        assert (label.class_id, label.label) == (1, "green")
        assert label.score == pytest.approx(expected((0, 255, 0))[1], abs=1e-5)
        with pytest.raises(ImageError):
            ask(b"no image")


def test_draw(tmp_path: Path):
    drawn = draw_answer(Outcome("cat.png", picture((9, 9, 9), (90, 60)), LABELS), CLASSIFICATION, tmp_path)
    assert drawn is not None
    assert drawn.path == tmp_path / "cat.png"
    with Image.open(drawn.path) as image:
        assert image.size == (90, 60)
        assert (np.asarray(image) != 9).any()


def test_nothing_to_draw_on(tmp_path: Path):
    for outcome in (
        Outcome("a", None, ImageError("unread")),
        Outcome("b", picture((0, 0, 0)), ClientError("refused")),
        Outcome("c", b"in a format that only the server knows", LABELS),
    ):
        assert draw_answer(outcome, CLASSIFICATION, tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_an_outcome_as_json(capsys: Captured, tmp_path: Path):
    show(Outcome("cat.jpg", b"", CATS), CLASSIFICATION, None, as_json=True)
    show(Outcome("cat.jpg", b"", CATS[:1]), CLASSIFICATION, Picture(tmp_path / "cat.png", ()), as_json=True)
    show(Outcome("no.jpg", None, ImageError("No image.")), CLASSIFICATION, None, as_json=True)
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
    show(Outcome("cat.jpg", b"", CATS), CLASSIFICATION, Picture(tmp_path / "cat.png", ()), as_json=False)
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
    show(Outcome("cat.jpg", b"", []), CLASSIFICATION, None, as_json=False)
    assert capsys.readouterr().out == "cat.jpg:\n  no label\n"


def test_a_failed_image_is_talk(capsys: Captured):
    show(Outcome("no.jpg", None, ImageError("No image.")), CLASSIFICATION, None, as_json=False)
    assert capsys.readouterr() == ("", "no.jpg: No image.\n")


def test_found_objects(capsys: Captured):
    one = FoundObject((1, 2, 30, 40), "茶", 0.5, (FoundMatch("茶", "tea/0.jpg", 0.5),))
    two = FoundObject((0, 0, 9, 9), "cola", 0.9, (FoundMatch("cola", "c", 0.9), FoundMatch("茶", "t", 0.2)))
    outcome = Outcome("a.jpg", b"", [one, two])
    show(outcome, RECOGNITION, None, as_json=True)
    first, second = json.loads(capsys.readouterr().out)["objects"]
    assert first == {"bbox": [1, 2, 30, 40], "label": "茶", "score": 0.5}
    assert [match["label"] for match in second["matches"]] == ["cola", "茶"]
    show(outcome, RECOGNITION, None, as_json=False)
    assert "1 2 30 40  茶" in capsys.readouterr().out


def test_what_no_font_could_write_is_said(capsys: Captured, tmp_path: Path):
    picture = Picture(tmp_path / "cat.png", ("1: 猫 0.93", "No font has these."))
    show(Outcome("cat.jpg", b"", CATS), CLASSIFICATION, picture, as_json=True)
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert err.splitlines() == ["  1: 猫 0.93", "  No font has these."]


@pytest.mark.parametrize(
    ("service", "given", "kind"),
    [
        (None, {"model": "tiny"}, "classification"),
        (None, {"model": "tiny", "gpu": "0"}, "classification"),
        (None, {"detector": "none", "index": "drinks"}, "recognition"),
        (None, {"detector": "a"}, "recognition"),
        (None, {"detector": "a", "labels": "b"}, "detection"),
        ("recognition", {}, "recognition"),
        ("detection", {"detector": "a"}, "detection"),
    ],
)
def test_the_service_to_run_without_a_server(service: str | None, given: dict[str, str], kind: str):
    assert _local_kind(service, given) == kind


@pytest.mark.parametrize(
    ("service", "given", "words"),
    [
        (None, {}, "--model NAME"),
        (None, {"threads": "2"}, "--model NAME"),
        ("classification", {}, "--model NAME"),
        ("detection", {}, "--detector NAME"),
        (None, {"labels": "a"}, "--model NAME"),
    ],
)
def test_a_model_to_run_must_be_named(service: str | None, given: dict[str, str], words: str):
    with pytest.raises(UsageError, match=words):
        _local_kind(service, given)
