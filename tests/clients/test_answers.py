from typing import Any

import pytest

from pdserve.clients.address import Address
from pdserve.clients.answers import UNKNOWN_CLASS, from_pipeline, from_results, single, unreachable
from pdserve.errors import ClientError, UnreachableError
from pdserve.vision.scores import Label


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
    first, second, third = from_results(content, 3)
    assert first == [Label(3, "cat", 0.5), Label(1, "dog", 0.0)]
    assert isinstance(second, ClientError)
    assert second.message == "No image."
    assert third == []


@pytest.mark.parametrize(
    "content", [None, [], "results", {}, {"results": None}, {"results": []}, {"results": [1, 2]}]
)
def test_no_results(content: Any):
    with pytest.raises(ClientError, match="answer is not 1 results"):
        from_results(content, 1)


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
    broken, whole = from_results({"results": [result, good]}, 2)
    assert isinstance(broken, ClientError)
    assert "cannot be read" in broken.message
    assert whole == [Label(1, "cat", 0.5)]


def test_pipeline():
    keys, values = ["prob", "label"], ["[0.9341, 0.5]", "['daisy', \"dog's\"]"]
    assert from_pipeline(keys, values, 2) == [
        [Label(UNKNOWN_CLASS, "daisy", 0.9341)],
        [Label(UNKNOWN_CLASS, "dog's", 0.5)],
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
    with pytest.raises(ClientError, match="has no label and prob"):
        from_pipeline(keys, values, 1)


def test_pipeline_answer_of_too_few():
    with pytest.raises(ClientError, match="answered 1 images of 2"):
        from_pipeline(["label", "prob"], ["['a']", "[0.1]"], 2)


def test_single():
    assert single([[Label(1, "cat", 0.5)]]) == [Label(1, "cat", 0.5)]
    with pytest.raises(ClientError, match="broken"):
        single([ClientError("broken")])


def test_unreachable_says_how_to_start_the_server():
    error = unreachable(Address("http", "127.0.0.1", 18080), "classification")
    assert isinstance(error, UnreachableError)
    assert "http://127.0.0.1:18080" in error.message
    assert "`pdserve serve classification`" in error.message
