"""/v1/embeddings and /v1/models: the form of OpenAI's API, and the openai package's own client on it."""

import asyncio
import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.extras import import_or_skip
from tests.running import Server, pdserve, start
from tests.services.http.described import check_response
from tests.tiny import build_embedder, picture

KEY = "k" * 32
COLORS = ((255, 0, 0), (0, 255, 0), (30, 40, 120))
TEXTS = [base64.b64encode(picture(color)).decode() for color in COLORS]
VECTORS = [np.array(color) / np.linalg.norm(color) for color in COLORS]
MODEL = "tiny_embedder"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    build_embedder(home / "models")
    (home / "gallery" / "red").mkdir(parents=True)
    (home / "gallery" / "red" / "0.png").write_bytes(picture((255, 0, 0)))
    options = ("--gallery", str(home / "gallery"), "--out", "colors", "--model", MODEL)
    done = pdserve(home, "index", "build", *options)
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture(scope="module")
def embedding(home: Path) -> Iterator[Server]:
    options = ("--model", MODEL, "--max-images", "4", "--max-body-bytes", "100000")
    with start(home, *options, service="embedding") as server:
        yield server


@pytest.fixture(scope="module")
def recognition(home: Path) -> Iterator[Server]:
    key = home / "keys"
    key.write_text(f"{KEY}\n", "utf-8")
    key.chmod(0o600)
    options = ("--embedder", MODEL, "--detector", "none", "--index", "colors", "--api-key", str(key))
    with start(home, *options, service="recognition") as server:
        yield server


def ask(server: Server, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v1/embeddings",
        json={"model": MODEL, "input": TEXTS} | body,
        headers=headers,
        trust_env=False,
        timeout=60,
    )


def test_the_answer_word_for_word(embedding: Server) -> None:
    response = ask(embedding, input=TEXTS[:2])
    assert response.status_code == 200
    assert response.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [1.0, 0.0, 0.0]},
            {"object": "embedding", "index": 1, "embedding": [0.0, 1.0, 0.0]},
        ],
        "model": MODEL,
        "usage": {"prompt_tokens": 2, "total_tokens": 2},
    }
    document = httpx.get(f"{embedding.url}/openapi.json", trust_env=False, timeout=60).json()
    check_response(document, "/v1/embeddings", response)
    check_response(document, "/v1/embeddings", ask(embedding, model="other"))


def test_base64_is_little_endian_float32_and_the_same_numbers(embedding: Server) -> None:
    floats = [each["embedding"] for each in ask(embedding).json()["data"]]
    packed = [each["embedding"] for each in ask(embedding, encoding_format="base64").json()["data"]]
    for numbers, text, wanted in zip(floats, packed, VECTORS, strict=True):
        vector = np.frombuffer(base64.b64decode(text), "<f4")
        assert np.array_equal(vector, np.array(numbers, np.float32))
        assert numbers == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_one_image_without_a_list(embedding: Server, prefix: str) -> None:
    (only,) = ask(embedding, input=prefix + TEXTS[2], encoding_format="float", user="me").json()["data"]
    assert only["embedding"] == pytest.approx(VECTORS[2], abs=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "code", "param", "words"),
    [
        ({"model": "clip"}, 404, "model_not_found", "model", "'clip' is not served here; this server's is"),
        ({"model": None}, 400, "bad_request", "model", "model is missing"),
        ({"input": None}, 400, "bad_request", "input", "input is missing"),
        ({"input": []}, 400, "bad_request", "input", "a list of such that is not empty"),
        ({"input": [1, 2]}, 400, "bad_request", "input", "input is [1, 2]; it must be an image file in base"),
        ({"input": {"a": 1}}, 400, "bad_request", "input", "it must be an image file in base64"),
        ({"input": [TEXTS[0], "***"]}, 400, "bad_image", "input", "input[1]: The image is not base64."),
        ({"input": "aGVsbG8="}, 400, "bad_image", "input", "input[0]: The 5 bytes are no image in a known"),
        ({"input": [*TEXTS, "aGVsbG8="]}, 400, "bad_image", "input", "input[3]: The 5 bytes are no image"),
        ({"input": ["https://x.y/a.jpg"]}, 400, "bad_request", "input", "input[0] is an address, and this"),
        ({"input": ["HTTP://x.y/a.jpg"]}, 400, "bad_request", "input", "input[0] is an address, and this"),
        ({"input": ["file:///etc/passwd"]}, 400, "bad_image", "input", "input[0]: The image is not base64."),
        (
            {"dimensions": 2},
            400,
            "bad_request",
            "dimensions",
            "dimensions is 2; the model's embeddings have 3",
        ),
        ({"dimensions": "3"}, 400, "bad_request", "dimensions", "must be a whole number"),
        ({"dimensions": True}, 400, "bad_request", "dimensions", "must be a whole number"),
        ({"encoding_format": "hex"}, 400, "bad_request", "encoding_format", "it must be float or base64"),
        ({"user": 3}, 400, "bad_request", "user", "it must be text"),
        (
            {"normalize": False},
            400,
            "bad_request",
            "normalize",
            "'normalize' is not one of model, input, enc",
        ),
        ({"input": TEXTS * 2}, 413, "body_too_large", None, "has 6 images, more than the limit of 4"),
        ({"input": ["no base64"] * 6}, 413, "body_too_large", None, "has 6 images, more than the limit of 4"),
        ({"input": "A" * 200_000}, 413, "body_too_large", None, "larger than the limit of 100000 bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_refused_and_how(
    embedding: Server, body: dict[str, Any], status: int, code: str, param: str | None, words: str
) -> None:
    response = ask(embedding, **body)
    assert response.status_code == status
    error = response.json()["error"]
    assert words in error.pop("message")
    assert error == {"type": "invalid_request_error", "code": code, "param": param}
    assert ask(embedding, dimensions=3).status_code == 200


def test_other_methods_and_no_json(embedding: Server) -> None:
    url = f"{embedding.url}/v1/embeddings"
    for response, status in (
        (httpx.get(url, trust_env=False), 405),
        (httpx.post(url, content=b"\xff", trust_env=False), 400),
        (httpx.post(url, content=b"[1]", trust_env=False), 400),
        (httpx.post(f"{embedding.url}/v1/models", trust_env=False), 405),
    ):
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_the_model_is_listed(embedding: Server) -> None:
    answer = httpx.get(f"{embedding.url}/v1/models", trust_env=False, timeout=60)
    (model,) = answer.json()["data"]
    assert isinstance(model.pop("created"), int)
    assert model == {"id": MODEL, "object": "model", "owned_by": "pdserve"}


def test_recognition_has_it_too_and_wants_its_key(recognition: Server) -> None:
    refused = ask(recognition)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert refused.json()["error"]["code"] == "unauthorized"
    assert refused.json()["error"]["type"] == "invalid_request_error"
    found = ask(recognition, {"Authorization": f"Bearer {KEY}"}).json()["data"]
    assert [each["embedding"] for each in found] == [pytest.approx(v, abs=1e-6) for v in VECTORS]


def test_a_service_without_an_embedder_has_neither(tiny_server: Server) -> None:
    for response in (ask(tiny_server), httpx.get(f"{tiny_server.url}/v1/models", trust_env=False)):
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "not_found"


def test_images_and_stages_are_counted(embedding: Server) -> None:
    def numbers() -> dict[str, float]:
        text = httpx.get(f"{embedding.url}/metrics", trust_env=False, timeout=60).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    def grown(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    before = numbers()
    assert ask(embedding).status_code == 200
    assert ask(embedding, input=[TEXTS[0], "aGVsbG8="]).status_code == 400
    after = numbers()
    assert grown('pdserve_images_total{outcome="ok"}') == 4
    assert grown('pdserve_images_total{outcome="bad_image"}') == 1
    assert grown('pdserve_requests_total{code="200",route="/v1/embeddings"}') == 1
    assert grown(f'pdserve_stage_seconds_count{{model="{MODEL}",stage="infer"}}') >= 1
    assert grown("pd_query_request_success_total") == 1


def test_a_name_that_the_server_was_not_started_with(home: Path, tmp_path: Path) -> None:
    """A model in a folder goes by the folder's own name."""
    shutil.copytree(home / "models" / f"{MODEL}_serving", tmp_path / "mine_serving")
    with start(home, "--model", str(tmp_path / "mine_serving"), service="embedding") as server:
        answer = httpx.get(f"{server.url}/v1/models", trust_env=False, timeout=60)
        (model,) = answer.json()["data"]
        assert ask(server, model=model["id"]).status_code == 200


def test_the_client_of_the_openai_package(embedding: Server, recognition: Server) -> None:
    openai = import_or_skip("openai", "check")
    with openai.OpenAI(base_url=f"{embedding.url}/v1", api_key="x") as client:
        # Without a format it asks for base64, and unpacks that.
        for more in ({}, {"encoding_format": "float"}, {"dimensions": 3}):
            made = client.embeddings.create(model=MODEL, input=TEXTS, **more)
            assert [each.index for each in made.data] == [0, 1, 2]
            for each, wanted in zip(made.data, VECTORS, strict=True):
                assert each.embedding == pytest.approx(wanted, abs=1e-6)
        packed = client.embeddings.create(model=MODEL, input=TEXTS[0], encoding_format="base64")
        assert np.frombuffer(base64.b64decode(packed.data[0].embedding), "<f4").tolist() == [1, 0, 0]
        assert (packed.model, packed.usage.total_tokens) == (MODEL, 1)
        assert [model.id for model in client.models.list()] == [MODEL]
        with pytest.raises(openai.NotFoundError, match="not served here") as missing:
            client.embeddings.create(model="clip", input=TEXTS)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError, match=r"input\[1\]: The image is not base64"):
            client.embeddings.create(model=MODEL, input=[TEXTS[0], "***"])
    with (
        openai.OpenAI(base_url=f"{recognition.url}/v1", api_key="x") as client,
        pytest.raises(openai.AuthenticationError, match="not one of this server's"),
    ):
        client.embeddings.create(model=MODEL, input=TEXTS)

    async def one() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{recognition.url}/v1", api_key=KEY) as client:
            return await client.embeddings.create(model=MODEL, input=TEXTS)

    for each, wanted in zip(asyncio.run(one()).data, VECTORS, strict=True):
        assert each.embedding == pytest.approx(wanted, abs=1e-6)
