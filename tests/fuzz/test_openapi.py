"""Requests made up from the OpenAPI description, valid ones and not, against real servers (schemathesis).

Whatever is sent, the answer is one that the description has: its status, its type, its form.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

pytest.importorskip("schemathesis", reason='needs schemathesis: pip install "pdserve[check]"')

import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.running import Server, pdserve, start
from tests.tiny import build_embedder, picture

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def recognition(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A recognition service whose gallery may be changed by anybody."""
    home = tmp_path_factory.mktemp("home")
    build_embedder(home / "models")
    (home / "gallery" / "red").mkdir(parents=True)
    (home / "gallery" / "red" / "0.png").write_bytes(picture((255, 0, 0)))
    options = ("--gallery", str(home / "gallery"), "--out", "colors", "--model", "tiny_embedder")
    done = pdserve(home, "index", "build", *options)
    assert done.returncode == 0, done.stderr
    options = ("--embedder", "tiny_embedder", "--detector", "none", "--index", "colors")
    with start(home, *options, "--gallery-writes", service="recognition") as server:
        yield server


def check(server: Server) -> int:
    """Try all operations; how many requests were sent."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    sent = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        takes = bool(operation.body) or any(operation.iter_parameters())
        # What takes nothing cannot be asked wrongly.
        for mode in GenerationMode if takes else (GenerationMode.POSITIVE,):

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(suppress_health_check=list(HealthCheck))
            def one(case: Any) -> None:
                nonlocal sent
                case.call_and_validate(checks=CHECKS)
                sent += 1

            # Of some, whatever may be sent is described: any name in a path, any bytes.
            with suppress(*(Unsatisfiable,) if mode is GenerationMode.NEGATIVE else ()):
                one()
    return sent


def test_classification_answers_as_described(tiny_server: Server) -> None:
    assert check(tiny_server) > 50


def test_recognition_and_its_gallery_answer_as_described(recognition: Server) -> None:
    assert check(recognition) > 50
    assert "Traceback" not in recognition.log


def test_what_is_described_is_there(tiny_server: Server) -> None:
    schema = schemathesis.openapi.from_url(f"{tiny_server.url}/openapi.json")
    paths = {found.ok().path for found in schema.get_all_operations()}
    assert {"/v1/classification", "/{name}/{method}", "/v2/health/ready", "/v2/health/live"} <= paths
