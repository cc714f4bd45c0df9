"""Embedding: a model's features over every protocol and command, and of a pipeline in this process."""

import ast
import asyncio
import base64
import json
import math
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from pdserve.clients import HttpClient, RpcClient
from pdserve.errors import ImageError, PdserveError
from pdserve.formats.model_files import find_model_files, read_program
from pdserve.models.home import Home
from pdserve.pipelines import SERVICES
from pdserve.pipelines.base import Direct, Pipeline
from pdserve.pipelines.embedder import open_embedder
from pdserve.settings import ModelSettings
from tests.running import Server, pdserve, start
from tests.tiny import build_embedder, picture

OPTIONS = ("--model", "tiny_embedder")
RED, ORANGE = (255, 0, 0), (255, 102, 0)


def vector(color: tuple[int, int, int]) -> list[float]:
    """The tiny embedder's features of a picture of one colour."""
    mean = np.array(color) / 255
    return [float(x) for x in mean / np.linalg.norm(mean)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("embedding")
    build_embedder(home / "models")
    (home / "orange.png").write_bytes(picture(ORANGE))
    return home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with start(home, *OPTIONS, service="embedding") as server:
        yield server


def test_over_v1(server: Server) -> None:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        (answer,) = client.post("/v1/embedding", content=picture(ORANGE)).json()["results"]
        assert list(answer) == ["embedding", "dimension"]
        assert answer["embedding"] == pytest.approx(vector(ORANGE), abs=1e-5)
        assert answer["dimension"] == 3
        files = [
            ("images", (f"{i}.png", data))
            for i, data in enumerate((picture(RED), b"none", picture(ORANGE), picture((0, 0, 0))))
        ]
        red, bad, orange, black = client.post("/v1/embedding", files=files).json()["results"]
        assert red["embedding"] == [1, 0, 0]
        assert bad["error"]["code"] == "bad_image"
        assert orange == answer
        assert black["embedding"] == [0, 0, 0]


def test_over_the_pipeline_protocol(server: Server) -> None:
    body = {"key": ["image"], "value": [base64.b64encode(picture(ORANGE)).decode()]}
    answer = httpx.post(f"{server.url}/embedding/prediction", json=body, trust_env=False).json()
    assert (answer["err_no"], answer["key"]) == (0, ["embedding"])
    (numbers,) = ast.literal_eval(answer["value"][0])
    assert numbers == pytest.approx(vector(ORANGE), abs=1e-5)


def test_the_clients_read_it(server: Server) -> None:
    for client in (HttpClient(server.url, "embedding"), RpcClient(server.target, "embedding")):
        with client:
            good, bad = client.ask([picture(ORANGE), b"none"])
            assert good.embedding == pytest.approx(vector(ORANGE), abs=1e-5)
            assert good.dimension == 3
            assert isinstance(bad, PdserveError)


def test_it_is_described_and_measured(server: Server) -> None:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        client.post("/v1/embedding", content=picture(RED))
        document = client.get("/openapi.json").json()
        answer = document["components"]["schemas"]["Embedding"]
        assert answer["properties"]["embedding"]["items"] == {"type": "number"}
        assert answer["required"] == ["embedding", "dimension"]
        metrics = client.get("/metrics").text
    assert 'pdserve_requests_total{code="200",route="/v1/embedding"}' in metrics
    assert 'role="embedder"' in metrics
    for stage in ("decode", "preprocess", "infer"):
        assert f'stage="{stage}"' in metrics


def test_predict_prints_how_many_numbers_and_the_first(server: Server, home: Path, tmp_path: Path) -> None:
    orange = str(home / "orange.png")
    for options in (("--url", server.url), ("--local", "--service", "embedding", *OPTIONS)):
        done = pdserve(home, "predict", orange, "--json", *options)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["embedding"] == pytest.approx(vector(ORANGE), abs=1e-5)
        shown = pdserve(home, "predict", orange, *options).stdout
        assert "  3 numbers: 0.9285 0.3714 0.0000\n" in shown
        drawn = pdserve(home, "predict", orange, "--draw", str(tmp_path / "drawn"), *options)
        assert drawn.returncode == 2
        assert "--draw: the answers of embedding are numbers" in drawn.stderr
        assert not (tmp_path / "drawn").exists()


@pytest.fixture
def pipeline(home: Path) -> Iterator[Pipeline[Any]]:
    entry = SERVICES["embedding"]
    opened = entry.open(entry.settings({"model": "tiny_embedder"}, {}), Home(home))
    yield opened
    opened.close()


def test_embed_gives_vectors_and_the_error_of_an_image_in_its_place(pipeline: Pipeline[Any]) -> None:
    refused = ImageError("not read")
    images = [picture(ORANGE), b"none", refused, picture(RED)]
    orange, bad, same, red = asyncio.run(pipeline.embed(images, Direct(pipeline.models)))
    assert isinstance(orange, np.ndarray)
    assert isinstance(red, np.ndarray)
    assert (orange.dtype, orange.shape) == (np.float32, (3,))
    assert orange.tolist() == pytest.approx(vector(ORANGE), abs=1e-5)
    assert np.linalg.norm(orange) == pytest.approx(1, abs=1e-6)
    assert isinstance(bad, ImageError)
    assert same is refused
    assert red.tolist() == [1, 0, 0]


def test_the_operator_of_a_configuration_file_is_the_model(home: Path, tmp_path: Path) -> None:
    content = {
        "http_port": 18083,
        "op": {"features": {"local_service_conf": {"model_config": "tiny_embedder"}, "batch_size": 3}},
    }
    (tmp_path / "config.yml").write_text(yaml.safe_dump(content), "utf-8")
    found = SERVICES["embedding"].settings({}, {}, tmp_path / "config.yml")
    assert (found.models["model"].model, found.models["model"].max_batch_size) == ("tiny_embedder", 3)
    assert found.server.name == "features"


def separate(folder: Path, into: Path) -> None:
    """The same model with a file for each parameter: what ``save_combine`` wrote, taken apart."""
    files = find_model_files(folder)
    assert files.params
    into.mkdir()
    shutil.copyfile(files.model, into / "__model__")
    for name in ("inference.yml", "serving_server_conf.prototxt", "serving_server_conf.stream.prototxt"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, into / name)
    data = files.params.read_bytes()
    for spec in read_program(files).parameters:
        length = struct.unpack("<i", data[16:20])[0]  # of the tensor's description, after two versions
        size = 20 + length + 4 * math.prod(spec.shape)
        (into / spec.name).write_bytes(data[:size])
        data = data[size:]
    assert not data


def test_the_fingerprint_is_of_all_files(home: Path, tmp_path: Path) -> None:
    one, many = home / "models" / "tiny_embedder_serving", tmp_path / "many_serving"
    separate(one, many)

    def fingerprint(folder: Path) -> str:
        with open_embedder(ModelSettings(model=str(folder)), Home(home)) as embedder:
            return embedder.fingerprint

    assert fingerprint(many) == fingerprint(one)
    for path in sorted(many.iterdir()):
        before = path.read_bytes()
        if path.name not in ("__model__", "inference.yml") and path.suffix != ".prototxt":
            path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))  # another weight
            assert fingerprint(many) != fingerprint(one)
            path.write_bytes(before)
