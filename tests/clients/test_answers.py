from dataclasses import dataclass, field
from typing import Any

import pytest

from pdserve.answers import UNKNOWN_CLASS, Detection, FoundMatch, FoundObject, Label, Labels, Objects
from pdserve.clients.address import Address
from pdserve.clients.answers import from_pipeline, from_results, items, single
from pdserve.clients.base import unreachable
from pdserve.errors import ClientError, UnreachableError


def test_results():
    content = {
        "results": [
            {
                "labels": [
                    {"class_id": 3, "label": "cat", "score": 0.5},
                    {"class_id": 1, "label": "dog", "score": 0},
                ]
            },
            {"error": {"code": "bad_image", "message": "No image."}},
            {"labels": []},
        ]
    }
    first, second, third = from_results(content, 3, Labels)
    assert first == Labels((Label(3, "cat", 0.5), Label(1, "dog", 0.0)))
    assert items(first) == [Label(3, "cat", 0.5), Label(1, "dog", 0.0)]
    assert isinstance(second, ClientError)
    assert second.message == "No image."
    assert third == Labels(())


@pytest.mark.parametrize(
    "content", [None, [], "results", {}, {"results": None}, {"results": []}, {"results": [1, 2]}]
)
def test_no_results(content: Any):
    with pytest.raises(ClientError, match="answer is not 1 results"):
        from_results(content, 1, Labels)


@pytest.mark.parametrize(
    "result",
    [
        None, 5, "error", [], {}, {"labels": 5}, {"labels": [{}]}, {"labels": ["cat"]}, {"error": "text"},
        {"labels": [{"class_id": "x", "label": "cat", "score": 0.5}]},
        {"labels": [{"class_id": float("inf"), "label": "cat", "score": 0.5}]},
        {"labels": [{"class_id": 1, "label": "cat", "score": None}]},
    ],
)  # fmt: skip
def test_a_result_that_cannot_be_read_is_an_error_of_its_own(result: Any):
    good = {"labels": [{"class_id": 1, "label": "cat", "score": 0.5}]}
    broken, whole = from_results({"results": [result, good]}, 2, Labels)
    assert isinstance(broken, ClientError)
    assert "cannot be read" in broken.message
    assert whole == Labels((Label(1, "cat", 0.5),))


def test_pipeline():
    keys, values = ["prob", "label"], ["[0.9341, 0.5]", "['daisy', \"dog's\"]"]
    assert from_pipeline(keys, values, 2, Labels) == [
        Labels((Label(UNKNOWN_CLASS, "daisy", 0.9341),)),
        Labels((Label(UNKNOWN_CLASS, "dog's", 0.5),)),
    ]


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        ([], []),
        (["label"], ["['a']"]),
        (["label", "prob"], ["['a']"]),
        (["label", "prob"], ["['a']", "[0.1, 0.2]"]),
        (["label", "prob"], ["['a']", "0.1"]),
        (["label", "prob"], ["a", "[0.1]"]),
        (["label", "prob"], ["['a'", "[0.1]"]),
        (["label", "prob"], ["['a']", "[np.float32(0.1)]"]),
        (["label", "prob"], ["['a']", "['much']"]),
        (["label", "prob"], ["__import__('os').getcwd()", "[0.1]"]),
        (["label", "prob"], ["[" * 10000, "[0.1]"]),
    ],
)
def test_no_pipeline_answer(keys: list[str], values: list[str]):
    with pytest.raises(ClientError, match="cannot be read"):
        from_pipeline(keys, values, 1, Labels)


def test_pipeline_answer_of_too_few():
    with pytest.raises(ClientError, match="answered 1 images of 2"):
        from_pipeline(["label", "prob"], ["['a']", "[0.1]"], 2, Labels)


def test_single():
    assert single([Labels((Label(1, "cat", 0.5),))]) == Labels((Label(1, "cat", 0.5),))
    with pytest.raises(ClientError, match="broken"):
        single([ClientError("broken")])


def test_unreachable_says_how_to_start_the_server():
    error = unreachable(Address("http", "127.0.0.1", 18080), "classification")
    assert isinstance(error, UnreachableError)
    assert "http://127.0.0.1:18080" in error.message
    assert "`pdserve serve classification`" in error.message


def test_objects():
    content = {
        "results": [
            {
                "objects": [
                    {
                        "bbox": [1, 2, 3, 4],
                        "label": "茶",
                        "score": 0.5,
                        "matches": [{"label": "茶", "image": "tea/0.jpg", "score": 0.5}],
                        "detection": {"bbox": [1.5, 2, 3, 4.5], "score": 0.25},
                        "a key of a newer server": None,
                    },
                    {"bbox": [1, 2, 3, 4], "label": "x", "score": 0.5, "detection": None},
                ],
                "index_version": 3,
                "timings_ms": {"decode": 1.5},
            },
            {"objects": []},
            {"objects": [{"bbox": [1, 2, 3], "label": "x", "score": 1}]},
            {"labels": []},
        ]
    }
    first, second, third, fourth = from_results(content, 4, Objects)
    found, whole_image = items(first)
    assert found == FoundObject((1, 2, 3, 4), "茶", 0.5, (FoundMatch("茶", "tea/0.jpg", 0.5),))
    assert found.detection == Detection((1.5, 2.0, 3.0, 4.5), 0.25)
    assert whole_image == FoundObject((1, 2, 3, 4), "x", 0.5)
    assert whole_image.detection is None
    assert (first.index_version, first.timings_ms) == (3, {"decode": 1.5})
    assert second == Objects(())
    assert isinstance(third, ClientError)
    assert isinstance(fourth, ClientError)


def test_objects_of_a_published_server():
    one = "[{'bbox': [1, 2, 3, 4], 'rec_docs': '茶', 'rec_scores': 0.5}]"
    assert from_pipeline(["result"], [one], 1, Objects) == [Objects((FoundObject((1, 2, 3, 4), "茶", 0.5),))]
    assert from_pipeline(["result"], [f"[{one}, []]"], 2, Objects) == [
        Objects((FoundObject((1, 2, 3, 4), "茶", 0.5),)),
        Objects(()),
    ]
    with pytest.raises(ClientError):
        from_pipeline(["result"], ["[{}]"], 1, Objects)


@dataclass(frozen=True)
class Segment:
    points: tuple[tuple[float, float], ...]
    name: str | None
    extra: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Segments:
    segments: tuple[Segment, ...]
    count: int = 0


def test_the_answers_of_a_new_service_need_no_code_here():
    content = [
        {"segments": [{"points": [[1, 2.5], [3, 4]], "name": None, "extra": {"a": 1}}], "count": 1},
        {"segments": [{"points": [[1, 2, 3]], "name": "three numbers are no point"}]},
        {"segments": [{"points": []}]},  # without its name
    ]
    good, odd, short = from_results({"results": content}, 3, Segments)
    assert good == Segments((Segment(((1.0, 2.5), (3.0, 4.0)), None, {"a": 1}),), 1)
    assert items(good) == list(good.segments)
    assert isinstance(odd, ClientError)
    assert isinstance(short, ClientError)
