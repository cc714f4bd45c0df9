"""The OpenAPI document: valid 3.1, and true of what is answered, for each kind of service."""

import asyncio
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from jsonschema import ValidationError
from openapi_spec_validator import OpenAPIV31SpecValidator

from pdserve.answers import Detection, FoundMatch, FoundObject, Label, Labels, Objects
from pdserve.errors import ImageError
from pdserve.pipelines import SERVICES
from pdserve.services.budget import Entrance
from pdserve.services.http import about
from pdserve.services.http.messages import encode, encode_results, to_json
from pdserve.services.protocols import Context
from pdserve.services.telemetry.metrics import Metrics
from pdserve.settings import ServerSettings
from tests.services.http.described import check
from tests.services.watching import FakeService


def document(kind: str, **settings: Any) -> dict[str, Any]:
    """As it comes out of the server: JSON."""
    metrics = Metrics()
    service = FakeService(metrics)
    service.kind = kind
    context = Context(service, Entrance(ServerSettings(name="x", **settings)), metrics)
    content: dict[str, Any] = json.loads(encode(about.document(context)))
    return content


@pytest.mark.parametrize("settings", [{}, {"api_key": "k" * 32}])
@pytest.mark.parametrize("kind", SERVICES)
def test_the_document_is_valid(kind: str, settings: Mapping[str, Any]) -> None:
    found = document(kind, **settings)
    assert found["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(found).validate()
    assert "nullable" not in json.dumps(found)


BOX = (1, 2, 30, 40)
OBJECT = FoundObject(BOX, "cola", 0.9, (FoundMatch("cola", "cola/1.jpg", 0.9),))
ANSWERS: Mapping[str, Sequence[Any]] = {
    "classification": [Labels((Label(3, "cat", 0.25), Label(1, "dog", 0.125))), Labels(())],
    "recognition": [
        Objects((OBJECT,), 4, {"decode": 1.5, "search": 0.25}),
        Objects((dataclasses.replace(OBJECT, detection=Detection((1.5, 2, 29.5, 40), 0.75)),), 4, {}),
        Objects(()),
    ],
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_are_as_described(kind: str) -> None:
    found = document(kind)
    route = SERVICES[kind].route
    for answer in ANSWERS[kind]:
        results = json.loads(encode({"results": [to_json(answer), to_json(ImageError("no image"))]}))
        check(found, route, results)
        # Each key is required, with a default or without: a client may count on all.
        for name in results["results"][0]:
            less = {key: value for key, value in results["results"][0].items() if key != name}
            with pytest.raises(ValidationError, match="is not valid under any of the given schemas"):
                check(found, route, {"results": [less]})


def test_what_a_key_holds_is_said() -> None:
    label = document("classification")["components"]["schemas"]["Label"]
    assert label["properties"]["score"]["description"] == "between 0 and 1"
    assert label["required"] == ["class_id", "label", "score"]
    match = document("recognition")["components"]["schemas"]["FoundObject"]
    assert match["properties"]["detection"]["anyOf"][1] == {"type": "null"}


def test_a_new_services_answers_are_described_without_a_further_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SERVICES["classification"].__class__, "answer_type", lambda _: Weight)
    found = document("classification")
    check(found, "/v1/classification", {"results": [{"grams": 1.5, "note": None}]})
    assert found["components"]["schemas"]["Weight"]["required"] == ["grams", "note"]


@dataclasses.dataclass(frozen=True)
class Weight:
    """The weight of what is in an image."""

    grams: float
    note: str | None = None


def test_results_are_encoded_image_by_image_to_the_same_bytes() -> None:
    answers = [Labels(tuple(Label(i, "红", 0.5) for i in range(9000))), ImageError("no image"), Labels(())]

    async def others() -> int:
        turns = 0
        encoding = asyncio.ensure_future(encode_results(answers))
        while not encoding.done():
            await asyncio.sleep(0)
            turns += 1
        assert encoding.result() == encode({"results": [to_json(each) for each in answers]})
        return turns

    assert asyncio.run(others()) > 1
    assert asyncio.run(encode_results([])) == b'{"results":[]}'
