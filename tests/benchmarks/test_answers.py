import json

import pytest

from benchmarks.answers import fault, labels

LABEL = {"label": "['cat']", "prob": "[0.5]"}
OBJECTS = {"result": "[{'bbox': [1, 2, 30, 40], 'rec_docs': 'cola', 'rec_scores': 0.9}]"}


def body(fields: dict[str, str], number: int = 0) -> bytes:
    whole = {"err_no": number, "err_msg": "why", "key": [*fields], "value": [*fields.values()], "tensors": []}
    return json.dumps(whole).encode()


@pytest.mark.parametrize("fields", [LABEL, OBJECTS])
def test_the_right_answer(fields: dict[str, str]) -> None:
    assert fault(body(fields), fields) is None


def test_engines_may_differ_by_rounding() -> None:
    assert fault(body(LABEL | {"prob": "[0.5003]"}), LABEL) is None
    assert fault(body({"result": OBJECTS["result"].replace("30", "31")}), OBJECTS) is None


@pytest.mark.parametrize(
    ("given", "wanted", "said"),
    [
        (body(LABEL | {"label": "['dog']"}), LABEL, "dog"),
        (body(LABEL | {"prob": "[0.6]"}), LABEL, "0.6"),
        (body(LABEL, 5000), LABEL, "err_no 5000: why"),
        (body({"result": "[]"}), OBJECTS, "0 objects, not 1"),
        (body({"result": OBJECTS["result"].replace("cola", "tea")}), OBJECTS, "tea"),
        (body({"result": OBJECTS["result"].replace("40", "50")}), OBJECTS, "50"),
        (body({"result": OBJECTS["result"].replace("0.9", "0.8")}), OBJECTS, "0.8"),
        (body(LABEL), OBJECTS, "no answer of the protocol"),
        (b"<html>", LABEL, "no answer of the protocol"),
        (b"[]", LABEL, "no answer of the protocol"),
    ],
)
def test_wrong_answers(given: bytes, wanted: dict[str, str], said: str) -> None:
    found = fault(given, wanted)
    assert found
    assert said in found


def test_labels() -> None:
    assert labels(LABEL) == ["cat"]
    assert labels(OBJECTS) == ["cola"]
