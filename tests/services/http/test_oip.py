"""The Open Inference Protocol over HTTP, word for word; foreign clients are in tests/end_to_end."""

import base64
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import numpy as np
import pytest

from tests.running import Server, start
from tests.services.http.described import check_response
from tests.services.listeners import listeners
from tests.tiny import SIZE, build_serving_model, expected, picture

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
COLORS = (RED, BLUE)
FILES = [picture(color) for color in COLORS]
SCORES = np.array([expected(color) for color in COLORS])
# What the model takes: colours scaled to [0, 1].
TENSOR = np.zeros((2, 3, SIZE, SIZE), np.float32)
TENSOR[0, 0] = TENSOR[1, 2] = 1
PIXELS = np.zeros((2, 30, 40, 3), np.uint8)
PIXELS[0, ..., 0] = PIXELS[1, ..., 2] = 255
MAX_IMAGES = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    build_serving_model(home / "models")
    limits = ("--max-images", str(MAX_IMAGES), "--max-pixels", "40000")
    with start(home, "--model", "tiny", *limits) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def tensor(array: Any, datatype: str, **more: Any) -> dict[str, Any]:
    return {"name": "image", "shape": list(array.shape), "datatype": datatype, "data": array.tolist()} | more


def files(*images: bytes, **more: Any) -> dict[str, Any]:
    texts = [base64.b64encode(image).decode() for image in images]
    return {"name": "image", "shape": [len(texts)], "datatype": "BYTES", "data": texts} | more


def ask(client: httpx.Client, *inputs: Mapping[str, Any], model: str = "tiny", **more: Any) -> httpx.Response:
    return client.post(f"/v2/models/{model}/infer", json={"inputs": inputs} | more)


def binary(
    client: httpx.Client, raw: bytes, head: dict[str, Any], length: str | None = None, **sizes: int
) -> httpx.Response:
    head = {"inputs": [head | {"parameters": {"binary_data_size": sizes.get("size", len(raw))}}]} | {
        "parameters": {"binary_data_output": True}
    }
    text = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": length or str(len(text))}
    return client.post("/v2/models/tiny/infer", content=text + raw, headers=headers)


def elements(raw: bytes) -> list[bytes]:
    found = []
    while raw:
        (size,) = struct.unpack_from("<I", raw)
        found.append(raw[4 : 4 + size])
        raw = raw[4 + size :]
    return found


def test_what_is_said_of_a_model(client: httpx.Client, document: dict[str, Any]) -> None:
    outputs = [
        {"name": "prediction", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "labels", "datatype": "BYTES", "shape": [-1]},
    ]
    by_tensors = {"name": "image", "datatype": "FP32", "shape": [-1, 3, SIZE, SIZE]}
    by_images = {"name": "image", "datatype": "BYTES", "shape": [-1]}
    for name, inputs in (("tiny", by_tensors), ("imagenet", by_images), ("classification", by_images)):
        for path in (f"/v2/models/{name}", f"/v2/models/{name}/versions/1"):
            found = client.get(path)
            content = found.json()
            assert found.status_code == 200
            assert content.pop("platform") == ("openvino" if name == "tiny" else "pdserve")
            assert content == {"name": name, "versions": ["1"], "inputs": [inputs], "outputs": outputs}
            ready = client.get(f"{path}/ready")
            assert (ready.status_code, ready.json()) == (200, {"name": name, "ready": True})
    check_as = {"/v2/models/{model}": found}
    for path, response in check_as.items():
        check_response(document, path, response)


def test_the_configuration(client: httpx.Client) -> None:
    tensors = client.get("/v2/models/tiny/config").json()
    assert tensors["max_batch_size"] == MAX_IMAGES
    assert tensors["input"] == [
        {"name": "image", "data_type": "TYPE_FP32", "dims": [3, SIZE, SIZE], "format": "FORMAT_NCHW"}
    ]
    assert tensors["output"][0] == {"name": "prediction", "data_type": "TYPE_FP32", "dims": [3]}
    images = client.get("/v2/models/imagenet/versions/1/config").json()
    scalar = {"dims": [1], "reshape": {"shape": []}}
    assert images["input"] == [{"name": "image", "data_type": "TYPE_STRING"} | scalar]


def test_what_is_not_there(client: httpx.Client, document: dict[str, Any]) -> None:
    for method, path in (
        ("GET", "/v2/models/none"),
        ("GET", "/v2/models/none/ready"),
        ("GET", "/v2/models/none/config"),
        ("GET", "/v2/models/none/stats"),
        ("GET", "/v2/models/tiny/versions/2"),
        ("POST", "/v2/models/none/infer"),
        ("POST", "/v2/models/tiny/versions/2/infer"),
    ):
        found = client.request(method, path)
        assert found.status_code == 404
        assert set(found.json()) == {"error"}
        words = (
            "no version '2'; its only one is '1'" if "tiny" in path else "no model 'none' here; there is ima"
        )
        assert words in found.json()["error"]
    check_response(document, "/v2/models/{model}", client.get("/v2/models/none"))
    other = client.post("/v2/models/tiny")
    assert (other.status_code, other.json()["error"][:26]) == (405, "/v2/models/tiny takes GET,")
    # Below /v2 what belongs to no route is answered as ever.
    for path in ("/v2/models", "/v2/models/", "/v2/models//infer", "/v2/models/tiny/infer/x", "/v2/none"):
        assert client.post(path).json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("model", ["tiny", "imagenet"])
@pytest.mark.parametrize(
    "given",
    [
        files(*FILES),
        files(*FILES, shape=[2, 1]),
        tensor(PIXELS, "UINT8"),
        tensor(TENSOR, "FP32"),
        tensor(TENSOR, "FP32", data=TENSOR.ravel().tolist()),
    ],
    ids=["files", "files in a column", "pixels", "tensor", "flat tensor"],
)
def test_every_input_gives_the_same(
    client: httpx.Client, document: dict[str, Any], model: str, given: dict[str, Any]
) -> None:
    found = ask(client, given, model=model, id="mine")
    assert found.status_code == 200, found.text
    content = found.json()
    assert (content["model_name"], content["model_version"], content["id"]) == (model, "1", "mine")
    prediction = content["outputs"][0]
    assert (prediction["name"], prediction["datatype"], prediction["shape"]) == ("prediction", "FP32", [2, 3])
    assert prediction["data"] == pytest.approx(SCORES.ravel().tolist(), abs=1e-5)
    if model == "imagenet":
        labels = content["outputs"][1]
        assert (labels["name"], labels["datatype"], labels["shape"]) == ("labels", "BYTES", [2])
        assert [json.loads(text)[0]["label"] for text in labels["data"]] == ["red", "blue"]
    else:
        assert len(content["outputs"]) == 1
    check_response(document, "/v2/models/{model}/infer", found)


def test_labels_are_those_of_v1(client: httpx.Client) -> None:
    own = client.post("/v1/classification", params={"top_k": 2}, content=FILES[1]).json()["results"][0]
    for given in (files(FILES[1]), tensor(PIXELS[1:], "UINT8"), tensor(TENSOR[1:], "FP32")):
        found = ask(client, given, outputs=[{"name": "labels"}], parameters={"top_k": 2}).json()
        (text,) = found["outputs"][0]["data"]
        assert json.loads(text) == own["labels"]


def test_classes(client: httpx.Client) -> None:
    wanted = [{"name": "prediction", "parameters": {"classification": 2}}]
    (output,) = ask(client, tensor(TENSOR, "FP32"), outputs=wanted).json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    least = min(SCORES[0])
    assert output["data"] == [
        f"{SCORES[0][0]:f}:0:red", f"{least:f}:1:green", f"{SCORES[1][2]:f}:2:blue", f"{least:f}:0:red",
    ]  # fmt: skip
    wanted[0]["parameters"] = {"classification": 900}  # type: ignore[dict-item]
    (output,) = ask(client, files(FILES[0]), outputs=wanted).json()["outputs"]
    assert output["shape"] == [1, 3]


@pytest.mark.parametrize("datatype", ["FP32", "UINT8", "BYTES", "base64"])
def test_bytes_behind_the_json(client: httpx.Client, datatype: str) -> None:
    if datatype in ("BYTES", "base64"):
        given = FILES if datatype == "BYTES" else [base64.b64encode(each) for each in FILES]
        raw = b"".join(struct.pack("<I", len(each)) + each for each in given)
        head: dict[str, Any] = {"name": "image", "shape": [2], "datatype": "BYTES"}
    else:
        array = TENSOR if datatype == "FP32" else PIXELS
        raw, head = array.tobytes(), {"name": "image", "shape": array.shape, "datatype": datatype}
    found = binary(client, raw, head)
    assert found.status_code == 200, found.text
    assert found.headers["Content-Type"] == "application/octet-stream"
    length = int(found.headers["Inference-Header-Content-Length"])
    (output,) = json.loads(found.content[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": 24}
    assert np.frombuffer(found.content[length:], "<f4").reshape(2, 3) == pytest.approx(SCORES, abs=1e-5)


def test_texts_behind_the_json_where_one_output_asks_for_them(client: httpx.Client) -> None:
    outputs = [
        {"name": "labels", "parameters": {"binary_data": True}},
        {"name": "prediction", "parameters": {"binary_data": False}},
    ]
    found = ask(client, files(*FILES), outputs=outputs, parameters={"binary_data_output": True})
    length = int(found.headers["Inference-Header-Content-Length"])
    labels, prediction = json.loads(found.content[:length])["outputs"]
    assert prediction["data"] == pytest.approx(SCORES.ravel().tolist(), abs=1e-5)
    texts = elements(found.content[length:])
    assert labels["parameters"]["binary_data_size"] == sum(4 + len(text) for text in texts)
    assert [json.loads(text)[0]["class_id"] for text in texts] == [0, 2]


CLASSIFIED = {"name": "labels", "parameters": {"classification": 1}}
NAN = np.full_like(TENSOR, np.nan)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ([], 400, "The body must be a JSON object"),
        ({}, 400, "The request has no inputs"),
        ({"inputs": []}, 400, "The request has no inputs"),
        ({"inputs": [1]}, 400, "inputs must be a list of objects"),
        ({"inputs": [{}] * 65}, 413, "has 65 inputs, more than the limit of 64"),
        ({"inputs": [{}]}, 400, "The name of an input is missing"),
        ({"inputs": [{"name": "image"}]}, 400, "The shape of the input 'image' must be a list"),
        ({"inputs": [files(FILES[0], shape=[1.0])]}, 400, "must be a list of whole numbers"),
        ({"inputs": [files(FILES[0], datatype=None)]}, 400, "The datatype of the input 'image' is missing"),
        ({"inputs": [files(FILES[0], datatype="BF16")]}, 400, "must be one of BOOL, UINT8"),
        ({"inputs": [files(FILES[0], shape=[])]}, 400, "extents must be above 0"),
        ({"inputs": [files(FILES[0], shape=[-1])]}, 400, "extents must be above 0"),
        ({"inputs": [files(FILES[0], shape=[1] * 9)]}, 400, "9 dimensions, more than the limit of 8"),
        ({"inputs": [files(FILES[0], shape=[2])]}, 400, "has 1 values; the shape [2] has 2"),
        ({"inputs": [files(FILES[0], shape=[2**30] * 8)]}, 413, "images, more than the limit of 4"),
        ({"inputs": [files(*FILES * 3)]}, 413, "has 6 images, more than the limit of 4"),
        ({"inputs": [files(FILES[0], data=[1])]}, 400, "each is the base64 of an image file"),
        ({"inputs": [files(FILES[0], data="x")]}, 400, "must be a list, or lists in lists"),
        ({"inputs": [files(FILES[0], data=["***"])]}, 400, "image[0]: The image is not base64."),
        ({"inputs": [files(FILES[0], b"hello")]}, 400, "image[1]: The 5 bytes are no image in a known"),
        ({"inputs": [files(FILES[0], name="x")]}, 400, "inputs are 'x'; 'tiny' takes 'image', or 'image' al"),
        ({"inputs": [files(FILES[0])] * 2}, 400, "The request's inputs are 'image', 'image'"),
        ({"inputs": [tensor(TENSOR[:, :, 1:], "FP32")]}, 400, "takes FP32 of [-1, 3, 32, 32]"),
        ({"inputs": [tensor(TENSOR, "FP64")]}, 400, "is FP64 of the shape [2, 3, 32, 32]"),
        ({"inputs": [tensor(TENSOR[0], "FP32")]}, 400, "takes FP32 of [-1, 3, 32, 32]"),
        ({"inputs": [tensor(TENSOR.repeat(3, 0), "FP32")]}, 413, "The request has 6 images, more than the"),
        ({"inputs": [tensor(PIXELS[..., :2], "UINT8")]}, 400, "pixels are images × height × width × 3"),
        ({"inputs": [tensor(PIXELS, "UINT8", shape=[1, 2, 30, 120])]}, 400, "pixels are images × height"),
        ({"inputs": [tensor(TENSOR, "FP32", shape=[4, 3, 32, 32])]}, 400, "number of values than its"),
        ({"inputs": [files(FILES[0])], "outputs": [{"name": "x"}]}, 400, "has no output 'x'; it has 'predi"),
        ({"inputs": [files(FILES[0])], "outputs": [{"name": "labels"}] * 2}, 400, "is asked for twice"),
        ({"inputs": [files(FILES[0])], "outputs": [{}]}, 400, "The name of an output is missing"),
        (
            {"inputs": [files(FILES[0])], "outputs": [CLASSIFIED]},
            400,
            "has no scores that could be classified",
        ),
        (
            {
                "inputs": [files(FILES[0])],
                "outputs": [{"name": "prediction", "parameters": {"classification": "1"}}],
            },
            400,
            "classification is '1'; it must be a whole number above 0",
        ),
        ({"inputs": [files(FILES[0])], "parameters": {"top_k": -1}}, 400, "top_k is '-1'"),
        ({"inputs": [files(FILES[0])], "parameters": {"timeout": 1}}, 504, "would come too late"),
        ({"inputs": [files(FILES[0])], "parameters": {"sequence_id": 7}}, 400, "no model here keeps a state"),
        ({"inputs": [files(FILES[0])], "parameters": 7}, 400, "parameters must be an object"),
        ({"inputs": [files(FILES[0])], "parameters": {"binary_data_output": 1}}, 400, "must be true or"),
        ({"inputs": [files(FILES[0])], "id": 7}, 400, "The id of the request is missing, or no text"),
        (
            {"inputs": [files(FILES[0], parameters={"shared_memory_region": "r"})]},
            501,
            "Shared memory is not offered",
        ),
        (
            {
                "inputs": [files(FILES[0])],
                "outputs": [{"name": "prediction", "parameters": {"shared_memory_region": "r"}}],
            },
            501,
            "Shared memory is not offered",
        ),
        ({"inputs": [files(FILES[0], parameters={"binary_data_size": 5})]}, 400, "0 bytes are left behind"),
    ],
)  # fmt: skip
def test_what_is_refused(client: httpx.Client, body: Any, status: int, words: str) -> None:
    found = client.post("/v2/models/tiny/infer", json=body)
    assert found.status_code == status, found.text
    assert set(found.json()) == {"error"}
    assert words in found.json()["error"]


def test_bytes_that_are_not_as_announced(client: httpx.Client) -> None:
    raw = TENSOR.tobytes()
    head: dict[str, Any] = {"name": "image", "shape": TENSOR.shape, "datatype": "FP32"}
    one: dict[str, Any] = {"name": "image", "shape": [1], "datatype": "BYTES"}
    for found, words in (
        (binary(client, raw, head, length="0"), "must be the length of the JSON"),
        (binary(client, raw, head, length="x"), "must be the length of the JSON"),
        (binary(client, raw, head, length="9" * 30), "must be the length of the JSON"),
        (binary(client, raw, head, length="20"), "The body is no JSON"),
        (binary(client, raw[:-1], head), "has 24575 bytes; [2, 3, 32, 32] of FP32 are 24576"),
        (binary(client, raw, head, size=len(raw) + 1), "24576 bytes are left behind"),
        (binary(client, raw, head, size=-1), "binary_data_size is '-1'"),
        (binary(client, raw + b"x", head, size=len(raw)), "1 bytes behind the JSON belong to no input"),
        (binary(client, b"\xff\xff\xff\xffabc", one), "are not 1 elements"),
        (binary(client, b"\x01\0\0\0ab", one), "are not 1 elements"),
        (binary(client, b"", one), "are not 1 elements"),
        (binary(client, b"\0\0\0\0", one), "image[0]: "),
    ):
        assert found.status_code == 400, found.text
        assert words in found.json()["error"]
    gzip = client.post("/v2/models/tiny/infer", content=b"x", headers={"Content-Encoding": "gzip"})
    assert (gzip.status_code, gzip.json()["error"][:23]) == (400, "The body is compressed,")


def test_tensors_that_are_no_numbers_hurt_nobody(client: httpx.Client, server: Server) -> None:
    head: dict[str, Any] = {"name": "image", "shape": TENSOR.shape, "datatype": "FP32"}
    for _ in range(5):  # three failures of an engine would have it rebuilt
        found = binary(client, NAN.tobytes(), head)
        assert found.status_code == 200
        assert np.isnan(np.frombuffer(found.content[-24:], "<f4")).all()
        assert ask(client, files(FILES[0])).status_code == 200
    read = client.post(
        "/v2/models/imagenet/infer",
        content=json.dumps({"inputs": [head | {"parameters": {"binary_data_size": NAN.nbytes}}]}).encode()
        + NAN.tobytes(),
        headers={"Inference-Header-Content-Length": str(
            len(json.dumps({"inputs": [head | {"parameters": {"binary_data_size": NAN.nbytes}}]}))
        )},
    )  # fmt: skip
    assert (read.status_code, "are not all numbers" in read.json()["error"]) == (400, True)
    assert "rebuilt" not in server.log
    assert 'pdserve_engine_rebuilds_total{cause="failing"}' not in client.get("/metrics").text


def test_pixels_over_the_limit(client: httpx.Client) -> None:
    large = np.zeros((1, 201, 200, 3), np.uint8)
    found = binary(client, large.tobytes(), {"name": "image", "shape": large.shape, "datatype": "UINT8"})
    assert (found.status_code, found.json()["error"][:33]) == (413, "The images have 200×201 pixels, m")


def test_shared_memory_is_refused_by_name(client: httpx.Client) -> None:
    for kind in ("systemsharedmemory", "cudasharedmemory"):
        for method, path in (
            ("GET", "status"),
            ("GET", "region/r/status"),
            ("POST", "region/r/register"),
            ("POST", "region/r/unregister"),
            ("POST", "unregister"),
        ):
            found = client.request(method, f"/v2/{kind}/{path}")
            assert found.status_code == 501
            assert found.json()["error"].startswith("Shared memory is not offered by this server")


def test_statistics_and_metrics(client: httpx.Client) -> None:
    def stats(path: str) -> dict[str, Any]:
        (found,) = client.get(path).json()["model_stats"]
        assert isinstance(found, dict)
        return found

    before = stats("/v2/models/imagenet/stats")
    assert ask(client, files(*FILES), model="imagenet").status_code == 200
    assert ask(client, files(b"x"), model="imagenet").status_code == 400
    after = stats("/v2/models/imagenet/versions/1/stats")
    assert after["inference_count"] - before["inference_count"] == 2
    assert after["execution_count"] > before["execution_count"]
    grown = {
        key: after["inference_stats"][key]["count"] - before["inference_stats"][key]["count"]
        for key in after["inference_stats"]
    }
    assert grown == {
        "success": 1, "fail": 1, "queue": 1, "compute_input": 4, "compute_infer": 1, "compute_output": 0,
    }  # fmt: skip
    everything = client.get("/v2/models/stats").json()["model_stats"]
    assert [each["name"] for each in everything] == ["imagenet", "classification", "tiny"]
    # One label for all models: a caller names them.
    numbers = client.get("/metrics").text
    assert 'pdserve_requests_total{code="200",route="/v2/models/{model}/infer"}' in numbers
    assert 'route="/v2/models/{model}/versions/{version}"' in numbers
    assert "/v2/models/none" not in numbers


def test_a_server_with_keys_answers_in_the_protocols_form() -> None:
    with (
        listeners(api_key="k" * 32) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client,
    ):
        refused = client.get("/v2/models/imagenet")
        assert (refused.status_code, set(refused.json())) == (401, {"error"})
        assert isinstance(refused.json()["error"], str)
        client.headers["Authorization"] = "Bearer " + "k" * 32
        assert client.get("/v2/models/imagenet").json()["inputs"][0]["datatype"] == "BYTES"
        assert client.get("/v2/health/ready").json() == {"ready": True}
