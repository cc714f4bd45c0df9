"""Records how the published Paddle Serving 0.9.0 pipeline server answers, into ``pipeline_protocol.json``.

Run it with a Python 3.9 that has the published packages, not with pdserve's own environment::

    pip install --no-deps paddle-serving-server==0.9.0 paddle-serving-client==0.9.0 paddle-serving-app==0.9.0
    pip install paddlepaddle==2.6.2 protobuf==3.20.3 "numpy<1.24" opencv-python==4.6.0.66 grpcio==1.47.5 \\
        grpcio-tools==1.47.5 "flask<2.1" "werkzeug<2.1" "jinja2<3.1" "itsdangerous<2.1" "markupsafe<2.1" \\
        "shapely<2" pyclipper sentencepiece pyyaml requests six pillow func-timeout pytest psutil \\
        faiss-cpu==1.7.4

    python pipeline_protocol_record.py --model ResNet50_vd_serving --out pipeline_protocol.json

``--model`` is a serving model folder of ResNet50_vd, feed alias ``inputs`` (the model's own name: the
published local predictor looks feeds up by the model's names) and fetch alias ``prediction``. On Linux
only, since the published HTTP door is a Linux shared library. The server binds every interface and ends
its whole process group when it fails to start, so it runs in a session of its own; run the script under
``unshare -n`` (with ``lo`` up) to keep it off the network. It takes two minutes and 2 GB.

The file is a list of cases::

    {"case": name, "door": "http" | "grpc", "service": which of SERVICES answered,
     "request": {...}, "response": {...}}

An HTTP request has ``method``, ``path``, ``headers`` (sent besides Host and Content-Length), at most one of
``json`` (an object), ``text`` (a string sent as it is) and ``hex`` (bytes), and where they are not the
default, ``http`` ("1.0"), ``chunked`` and ``gzip``. A gRPC request has ``method`` (full path), ``metadata``
and ``message`` (protobuf's JSON mapping with the .proto's field names). In both, an object
``{"$image": file, …}`` stands for a string: the base64 of that file in ``golden/images``, changed by ``take``
(first bytes only), ``pad`` (zero bytes added up to this length), ``urlsafe``, ``wrap`` (a newline every so
many characters), ``prefix`` and ``unpadded`` (no "="); ``{"$repeat": text, "times": n}`` stands for a long
string and ``{"$npy": values, "dtype": name}`` for the base64 of a NumPy array file.

An HTTP response has ``status``, ``headers`` (without Date, Content-Length and Grpc-Metadata-…) and ``body``
(text, exact); a gRPC response ``code``, ``details`` and ``message``. What varies is told: ``err_msg_pattern``
is a regular expression for the message with the parts that count up or quote a library opened; ``model``
marks labels and probabilities, which come from the model and the labels file; ``timings`` a
``pipeline.profile`` value. The ``error`` and ``message`` of a 400 are the words of Go's JSON reader.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import gzip
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
IMAGES = HERE / "golden" / "images"
LABELS = HERE.parents[1] / "pdserve" / "models" / "labels" / "imagenet1k_label_list.txt"
HTTP_PORT, RPC_PORT = 18080, 9993
RPC = "/baidu.paddle_serving.pipeline_serving.PipelineService/inference"
LIMIT = 512 << 20
PROFILE = "pipeline.profile"

# Settings that differ from config(): "profile" skips the key that asks for timings, which the services
# of PaddleClas take for an image.
SERVICES: dict[str, dict[str, Any]] = {
    "plain": {},
    "profile": {},
    "timeout": {"timeout": 1},
}


# --- the service ----------------------------------------------------------------------------------------


def config(model: str, **op: Any) -> dict[str, Any]:
    """The server's config.yml as a dict, the shape of PaddleClas' one, on the CPU."""
    return {
        "worker_num": 1,
        "http_port": HTTP_PORT,
        "rpc_port": RPC_PORT,
        "dag": {"is_thread_op": False},
        "op": {
            "imagenet": {
                "concurrency": 1,
                **op,
                "local_service_conf": {
                    "model_config": model,
                    "device_type": 0,
                    "devices": "",
                    "client_type": "local_predictor",
                    "fetch_list": ["prediction"],
                },
            }
        },
    }


def serve(service: str, model: str, labels: str, **op: Any) -> None:
    """Run the published server, with a classification service such as PaddleClas has, until killed."""
    import cv2
    import numpy as np
    from paddle_serving_app import reader
    from paddle_serving_server.web_service import Op, WebService

    names = [line.split(" ", 1)[1].strip() for line in Path(labels).read_text(encoding="utf-8").splitlines()]

    class Classify(Op):
        def init_op(self):
            self.chain = reader.Sequential(
                [
                    reader.Resize(256),
                    reader.CenterCrop(224),
                    reader.RGB2BGR(),
                    reader.Transpose((2, 0, 1)),
                    reader.Div(255),
                    reader.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], True),
                ]
            )

        def preprocess(self, input_dicts, data_id, log_id):
            (values,) = input_dicts.values()
            batch = []
            for key, value in values.items():
                if service == "profile" and key == PROFILE:
                    continue
                encoded = np.frombuffer(base64.b64decode(value.encode("utf8")), np.uint8)
                batch.append(self.chain(cv2.imdecode(encoded, cv2.IMREAD_COLOR))[np.newaxis].copy())
            return {"inputs": np.concatenate(batch, axis=0)}, False, None, ""

        def postprocess(self, input_dicts, fetch_dict, data_id, log_id):
            rows = [row.tolist() for row in fetch_dict["prediction"]]
            best = [row.index(max(row)) for row in rows]
            label = [names[i].strip().replace(",", "") for i in best]
            prob = [max(row) for row in rows]
            return {"label": str(label), "prob": str(prob)}, None, ""

    class Service(WebService):
        def get_pipeline_response(self, read_op):
            return Classify(name="imagenet", input_ops=[read_op])

    web = Service(name="imagenet")
    web.prepare_pipeline_config(yml_dict=config(model, **op))
    web.run_service()


def start(service: str, model: Path, labels: Path, folder: Path) -> subprocess.Popen[bytes]:
    """The server in a process group of its own, once it answers."""
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    environment["SERVING_HOME"] = str(folder)
    command = [sys.executable, __file__, "--serve", service, "--model", str(model), "--labels", str(labels)]
    with (folder / f"{service}.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    for _ in range(240):
        if process.poll() is not None:
            break
        try:
            for port in (RPC_PORT, HTTP_PORT):
                socket.create_connection(("127.0.0.1", port), 1).close()
            # The gateway answers before the model is loaded; a failed request means that all is up.
            if exchange_http({"method": "POST", "path": "/imagenet/ready", "json": {}})["status"] == 200:
                return process
        except OSError:
            pass
        time.sleep(0.5)
    stop(process)
    raise SystemExit((folder / f"{service}.log").read_text(errors="replace"))


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill the server's process group; it has no gentler end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# --- one exchange ---------------------------------------------------------------------------------------


def expand(value: Any) -> Any:
    """A request with its ``$`` objects replaced by the strings that they stand for."""
    if isinstance(value, list):
        return [expand(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$image" in value:
        data = (IMAGES / value["$image"]).read_bytes()[: value.get("take")]
        data = data.ljust(value.get("pad", 0), b"\0")
        text = (base64.urlsafe_b64encode if value.get("urlsafe") else base64.b64encode)(data).decode()
        if value.get("unpadded"):
            text = text.rstrip("=")
        if "wrap" in value:
            step = value["wrap"]
            text = "\n".join(text[i : i + step] for i in range(0, len(text), step))
        return value.get("prefix", "") + text
    if "$repeat" in value:
        return value["$repeat"] * value["times"]
    if "$npy" in value:
        import numpy as np

        file = io.BytesIO()
        np.save(file, np.array(value["$npy"], dtype=value["dtype"]), allow_pickle=False)
        return base64.b64encode(file.getvalue()).decode()
    return {key: expand(item) for key, item in value.items()}


def exchange_http(request: dict[str, Any], port: int = HTTP_PORT) -> dict[str, Any]:
    """Send one HTTP request of the file's form; the response in the file's form."""
    body = None
    if "json" in request:
        body = json.dumps(expand(request["json"])).encode()
    elif "text" in request:
        body = request["text"].encode()
    elif "hex" in request:
        body = bytes.fromhex(request["hex"])
    if request.get("gzip"):
        body = gzip.compress(body or b"")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    if request.get("http") == "1.0":
        connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"
    try:
        chunked = bool(request.get("chunked"))
        connection.putrequest(request["method"], request["path"], skip_accept_encoding=True)
        for name, value in request.get("headers", {}).items():
            connection.putheader(name, value)
        if chunked:
            connection.putheader("Transfer-Encoding", "chunked")
        elif body is not None:
            connection.putheader("Content-Length", str(len(body)))
        parts = iter([body[i : i + 10000] for i in range(0, len(body), 10000)]) if chunked and body else body
        connection.endheaders(parts, encode_chunked=chunked)
        answer = connection.getresponse()
        text = answer.read().decode()
        dropped = ("Date", "Content-Length", "Grpc-Metadata-")
        headers = {k: v for k, v in answer.getheaders() if not k.startswith(dropped)}
        return {"status": answer.status, "headers": headers, "body": text}
    finally:
        connection.close()


def exchange_grpc(request: dict[str, Any], port: int = RPC_PORT) -> dict[str, Any]:
    """Send one gRPC request of the file's form; the response in the file's form."""
    import grpc
    from google.protobuf import json_format
    from paddle_serving_server.pipeline.proto import pipeline_service_pb2 as pb

    message = json_format.ParseDict(expand(request["message"]), pb.Request())
    options = [
        ("grpc.max_receive_message_length", LIMIT),
        ("grpc.max_send_message_length", LIMIT),
        ("grpc.enable_http_proxy", 0),
    ]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        call = channel.unary_unary(
            request["method"],
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=pb.Response.FromString,
        )
        try:
            answer = call(message, metadata=list(request.get("metadata", {}).items()), timeout=120)
        except grpc.RpcError as error:
            return {"code": error.code().name, "details": error.details()}
    told = json_format.MessageToDict(
        answer, including_default_value_fields=True, preserving_proto_field_name=True
    )
    return {"code": "OK", "message": told}


# --- the cases ------------------------------------------------------------------------------------------


def image(name: str = "photo.jpg", **changes: Any) -> dict[str, Any]:
    return {"$image": name, **changes}


def one(value: Any = None, **more: Any) -> dict[str, Any]:
    """The body of a request with one image."""
    return {"key": ["image"], "value": [image() if value is None else value], **more}


def one_and_profile(wish: str, value: Any = None) -> dict[str, Any]:
    return {"key": ["image", PROFILE], "value": [image() if value is None else value, wish]}


def tensor(**fields: Any) -> dict[str, Any]:
    return {"tensors": [{"name": "image", **fields}]}


def http_cases() -> list[tuple[str, dict[str, Any]]]:
    """Name and request of each HTTP case; requests are POST /imagenet/prediction unless they say so."""
    three = [image("photo.jpg"), image("exif6.jpg"), image("small.png")]
    others = "cmyk.jpg exif6.jpg progressive.jpg photo.webp gray.png gray16.png rgba.png small.png tall.png"
    others += " wide.png"
    logids = ["7", '"7"', '"seven"', "null", "7.0", "7.5", '"7.0"', "1e3", "-7", "true", "[]", '""', '" 7"']
    logids += ["9223372036854775807", "9223372036854775808", '"9223372036854775807"']
    kinds = ["application/json", "application/json; charset=utf-8", "text/plain", "multipart/form-data"]
    kinds += ["application/x-www-form-urlencoded", "application/x-protobuf", "nonsense"]
    form = {"X-HTTP-Method-Override": "GET", "Content-Type": "application/x-www-form-urlencoded"}
    cases: list[tuple[str, dict[str, Any]]] = [
        # Images
        ("one image", {"json": one()}),
        *((f"one image, {name}", {"json": one(image(name))}) for name in others.split()),
        ("three images", {"json": {"key": ["image_0", "image_1", "image_2"], "value": three}}),
        ("any key names", {"json": {"key": ["", "π", "a b"], "value": three}}),
        (
            "same key twice: one answer, the last value at the first's place",
            {"json": {"key": ["a", "b", "a"], "value": three}},
        ),
        ("value before key", {"json": {"value": [image()], "key": ["image"]}}),
        ("key names with lod in them", {"json": {"key": ["x.lod"], "value": [image()]}}),
        ("base64 url-safe", {"json": one(image(urlsafe=True))}),
        ("base64 in lines", {"json": one(image(wrap=76))}),
        ("base64 without padding", {"json": one(image("small.png", take=2074, unpadded=True))}),
        ("data URL", {"json": one(image(prefix="data:image/jpeg;base64,"))}),
        ("data URL, png", {"json": one(image("small.png", prefix="data:image/png;base64,"))}),
        ("truncated jpeg", {"json": one(image(take=20000))}),
        ("truncated png", {"json": one(image("small.png", take=1000))}),
        ("jpeg header only", {"json": one(image(take=30))}),
        ("base64 of no image", {"json": one("aGVsbG8gd29ybGQ=")}),
        ("not base64, length", {"json": one("hello")}),
        ("not base64, padding", {"json": one("helloo")}),
        ("not base64, letters", {"json": one("***?!***")}),
        ("not ASCII", {"json": one("画像")}),
        ("empty value", {"json": one("")}),
        ("good image and bad image", {"json": {"key": ["a", "b"], "value": [image(), "hello"]}}),
        ("5 MB image", {"json": one(image(pad=5_000_000))}),
        ("70 MB body", {"json": one(image(pad=52_500_000))}),
        # Keys, values, other fields
        ("two keys, one value", {"json": {"key": ["a", "b"], "value": [image()]}}),
        (
            "one key, two values: the second is ignored",
            {"json": {"key": ["a"], "value": [image(), image("small.png")]}},
        ),
        ("one key, no values", {"json": {"key": ["a"]}}),
        ("no keys, one value", {"json": {"value": [image()]}}),
        ("empty lists", {"json": {"key": [], "value": []}}),
        ("null lists", {"json": {"key": None, "value": None}}),
        ("empty object", {"json": {}}),
        ("unknown fields", {"json": one(extra=1, Key=["x"], nested={"a": [1]})}),
        ("name in the body: the path wins", {"json": one(name="other", method="x")}),
        ("name in the body of the wrong type", {"json": one(name=1)}),
        ("clientip", {"json": one(clientip="10.0.0.1")}),
        ("clientip of the wrong type", {"json": one(clientip=1)}),
        ("key a string", {"json": {"key": "image", "value": [image()]}}),
        ("value a string", {"json": {"key": ["image"], "value": image()}}),
        ("value an object", {"json": {"key": ["image"], "value": {"a": "b"}}}),
        ("value of ints", {"json": {"key": ["image"], "value": [1]}}),
        ("value of null", {"json": {"key": ["image"], "value": [None]}}),
        ("value of true", {"json": {"key": ["image"], "value": [True]}}),
        ("key of ints", {"json": {"key": [1], "value": [image()]}}),
        ("same field twice: the last", {"text": '{"key": ["a", "b"], "key": ["c"], "value": ["hello"]}'}),
        ("the older web service's body", {"json": {"feed": [{"image": "hello"}], "fetch": ["x"]}}),
        # logid: the failing value shows which one the server took
        *(
            (f"logid {text}", {"text": '{"key":["image"],"value":["hello"],"logid":' + text + "}"})
            for text in logids
        ),
        ("log_id, another name", {"json": {"key": ["image"], "value": ["hello"], "log_id": 7}}),
        ("logId, camel case", {"json": {"key": ["image"], "value": ["hello"], "logId": 7}}),
        ("clientIp, camel case", {"json": {"key": ["image"], "value": ["hello"], "clientIp": 7}}),
        # Tensors
        ("empty tensors", {"json": one(tensors=[])}),
        ("null tensors", {"json": one(tensors=None)}),
        ("tensors an object", {"json": one(tensors={})}),
        ("string tensor", {"json": tensor(elem_type=12, str_data=[image()])}),
        ("string tensor, camel case", {"json": tensor(elemType=12, strData=[image()])}),
        ("string tensor, both cases", {"json": tensor(elem_type=12, strData=[image()])}),
        ("string tensor in two pieces", {"json": tensor(elem_type=12, str_data=["aGVsbG8g", "d29ybGQ="])}),
        (
            "string tensor beside a key of that name: the tensor wins",
            {"json": {**one(), **tensor(elem_type=12, str_data=["hello"])}},
        ),
        ("string tensor without data", {"json": tensor(elem_type=12)}),
        ("float tensor", {"json": tensor(elem_type=1, shape=[2], float_data=[1.0, 2.5])}),
        ("uint8 tensor", {"json": tensor(elem_type=7, shape=[2], uint32_data=[1, 2])}),
        ("npy tensor", {"json": tensor(elem_type=13, byte_data={"$npy": [1, 2], "dtype": "uint8"})}),
        ("tensor whose shape does not fit", {"json": tensor(elem_type=1, shape=[3], float_data=[1.0])}),
        ("tensor of complex numbers", {"json": tensor(elem_type=10, complex64_data=[1.0])}),
        ("tensor of an unknown type", {"json": tensor(elem_type=99)}),
        ("tensor whose lod is odd", {"json": tensor(elem_type=1, shape=[1], float_data=[1], lod=[0, 1, 2])}),
        ("tensor whose name is π<&>", {"json": {"tensors": [{"name": "π<&>", "elem_type": 10}]}}),
        ("bytes that are no npy", {"json": tensor(elem_type=13, byte_data="aGVsbG8=")}),
        ("bytes that are not base64", {"json": tensor(elem_type=13, byte_data="*")}),
        ("tensor field of the wrong type", {"json": tensor(elem_type="x")}),
        ("tensor's int64 as strings", {"json": tensor(elem_type=0, shape=[1], int64_data=["1"])}),
        # Timings
        ("profile, a service that takes the key for an image", {"json": one_and_profile("1")}),
        # Bodies
        ("no body", {}),
        ("empty body", {"text": ""}),
        ("blank body", {"text": " \n"}),
        ("not JSON", {"text": "hello"}),
        ("JSON cut short", {"text": '{"key": ["a"'}),
        ("JSON with a comma too many", {"text": '{"key": ["a"],}'}),
        ("JSON and more", {"text": '{"key": ["a"], "value": ["hello"]} tail'}),
        ("two JSON objects: the first", {"text": '{"key": ["a"], "value": ["hello"]}{"logid": 1}'}),
        ("array", {"text": "[]"}),
        ("null", {"text": "null"}),
        ("number", {"text": "1"}),
        ("string", {"text": '"a"'}),
        ("form", {"text": "key=image&value=hello"}),
        ("NaN", {"text": '{"key": ["a"], "value": ["hello"], "logid": NaN}'}),
        ("byte order mark", {"text": '\ufeff{"key": ["a"], "value": ["hello"]}'}),
        ("escaped text", {"text": '{"key": ["\\u0061"], "value": ["hell\\u006f"]}'}),
        ("bytes that are not UTF-8", {"hex": b'{"key":["\xff"],"value":["hello"]}'.hex()}),
        ("lone surrogate", {"text": '{"key": ["\\ud800"], "value": ["hello"]}'}),
        ("chunked", {"json": one(), "chunked": True}),
        ("HTTP/1.0", {"json": one(), "http": "1.0"}),
        ("gzip", {"json": one(), "gzip": True, "headers": {"Content-Encoding": "gzip"}}),
        # Headers
        *((f"Content-Type {k}", {"json": one("hello"), "headers": {"Content-Type": k}}) for k in kinds),
        ("Accept text/html", {"json": one("hello"), "headers": {"Accept": "text/html"}}),
        ("Accept-Encoding gzip", {"json": one(), "headers": {"Accept-Encoding": "gzip"}}),
        ("Origin", {"json": one("hello"), "headers": {"Origin": "http://example.org"}}),
        ("X-HTTP-Method-Override GET with a form type", {"json": one("hello"), "headers": form}),
        ("Expect 100-continue", {"json": one("hello"), "headers": {"Expect": "100-continue"}}),
        ("Connection close", {"json": one("hello"), "headers": {"Connection": "close"}}),
        ("Grpc-Timeout too short", {"json": one(), "headers": {"Grpc-Timeout": "1m"}}),
        ("Grpc-Timeout long", {"json": one("hello"), "headers": {"Grpc-Timeout": "1M"}}),
        ("Grpc-Timeout nonsense", {"json": one("hello"), "headers": {"Grpc-Timeout": "soon"}}),
        # Methods
        *((m, {"method": m, "json": one("hello")}) for m in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS")),
        ("GET without a body", {"method": "GET"}),
        ("HEAD", {"method": "HEAD"}),
        ("POST in small letters", {"method": "post", "json": one("hello")}),
    ]
    paths = {
        "another service": "/other/prediction",
        "service in capitals": "/Imagenet/prediction",
        "another method": "/imagenet/anything",
        "trailing slash": "/imagenet/prediction/",
        "one segment": "/imagenet",
        "one segment, slash": "/imagenet/",
        "three segments": "/imagenet/prediction/x",
        "root": "/",
        "no service": "//prediction",
        "two slashes": "/imagenet//prediction",
        "dots": "/imagenet/../imagenet/prediction",
        "colon": "/imagenet/prediction:x",
        "encoded letter": "/%69magenet/prediction",
        "encoded slash": "/imagenet%2Fprediction",
        "query": "/imagenet/prediction?logid=9&key=a&unknown=1",
        "query pretty": "/imagenet/prediction?pretty",
        "gRPC's own path": RPC,
        "percent-encoded Chinese": "/%E5%9B%BE/prediction",
        "not UTF-8": "/imagenet/%ff",
        "bad percent": "/imagenet/%zz",
    }
    cases += [(f"path: {name}", {"path": path, "json": one("hello")}) for name, path in paths.items()]
    cases += [
        ("GET on a wrong path", {"method": "GET", "path": "/x"}),
        ("GET on the root", {"method": "GET", "path": "/"}),
        ("GET on another service", {"method": "GET", "path": "/other/prediction"}),
        ("not JSON to another service", {"path": "/other/prediction", "text": "hello"}),
        ("not JSON to a wrong path", {"path": "/x", "text": "hello"}),
        ("over 256 MiB", {"json": one({"$repeat": "A", "times": 270_000_000})}),
    ]
    return [(name, {"method": "POST", "path": "/imagenet/prediction", **request}) for name, request in cases]


def grpc_cases() -> list[tuple[str, dict[str, Any]]]:
    """Name and request of each gRPC case; the method is the service's unless they say so."""
    three = [image("photo.jpg"), image("exif6.jpg"), image("small.png")]
    flat = {"elem_type": 1, "shape": [2], "float_data": [1.0, 2.0]}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("one image, no name", {"message": one()}),
        ("one image, name and method", {"message": one(name="imagenet", method="prediction")}),
        ("three images", {"message": {"key": ["0", "1", "2"], "value": three}}),
        ("another name", {"message": one(name="other")}),
        ("name in capitals", {"message": one(name="Imagenet")}),
        ("another method", {"message": one(method="x")}),
        ("logid in an error", {"message": one("hello", logid=12345678901)}),
        ("negative logid", {"message": one("hello", logid=-1)}),
        ("clientip", {"message": one("hello", clientip="10.0.0.1")}),
        ("empty", {"message": {}}),
        ("two keys, one value", {"message": {"key": ["a", "b"], "value": ["hello"], "logid": 3}}),
        ("one key, two values", {"message": {"key": ["a"], "value": [image(), "hello"]}}),
        ("same key twice", {"message": {"key": ["a", "a"], "value": ["hello", image()]}}),
        ("base64 of no image", {"message": one("aGVsbG8gd29ybGQ=", logid=3)}),
        ("string tensor", {"message": tensor(elem_type=12, str_data=[image()])}),
        ("string tensor in two pieces", {"message": tensor(elem_type=12, str_data=["hel", "lo"])}),
        ("float32 tensor", {"message": tensor(**flat)}),
        ("npy tensor", {"message": tensor(elem_type=13, byte_data={"$npy": [[1, 2]], "dtype": "uint8"})}),
        ("bytes that are no npy", {"message": tensor(elem_type=13, byte_data="aGVsbG8=")}),
        ("tensor whose shape does not fit", {"message": tensor(elem_type=1, shape=[3], float_data=[1.0])}),
        ("tensor of a type without a reader", {"message": tensor(elem_type=10)}),
        ("tensor of an unknown type", {"message": tensor(elem_type=99)}),
        ("tensor without a name", {"message": {"tensors": [{"elem_type": 12, "str_data": [image()]}]}}),
        ("profile, a service that takes the key for an image", {"message": one_and_profile("1")}),
        ("70 MB message", {"message": one(image(pad=52_500_000))}),
        ("unknown method", {"method": RPC + "s", "message": one()}),
        ("unknown service", {"method": "/paddle.Other/inference", "message": one()}),
        ("over 256 MiB", {"message": {"key": ["a"], "value": [{"$repeat": "A", "times": 270_000_000}]}}),
    ]
    return [(name, {"method": RPC, **request}) for name, request in cases]


def all_cases() -> list[dict[str, Any]]:
    cases = [{"case": n, "door": "http", "service": "plain", "request": r} for n, r in http_cases()]
    cases += [{"case": n, "door": "grpc", "service": "plain", "request": r} for n, r in grpc_cases()]
    for service, name, body in [
        ("profile", "profile asked for", one_and_profile("1")),
        ("profile", "profile key with another value", one_and_profile("yes")),
        ("profile", "profile asked for, failing", one_and_profile("1", "hello")),
        ("timeout", "the model takes longer than timeout", one(logid=5)),
    ]:
        http_request = {"method": "POST", "path": "/imagenet/prediction", "json": body}
        grpc_request = {"method": RPC, "message": body}
        for door, request in [("http", http_request), ("grpc", grpc_request)]:
            cases.append({"case": name, "door": door, "service": service, "request": request})
    return cases


def annotate(response: dict[str, Any]) -> None:
    """Add what a test may rely on where the answer varies: ``err_msg_pattern`` and ``model``."""
    try:
        told = response.get("message") or json.loads(response["body"])
    except (KeyError, ValueError):
        return
    if not isinstance(told, dict) or "err_no" not in told:
        return
    if told["err_no"] == 0:
        response["model"] = True
    if PROFILE in told["key"]:
        response["timings"] = True
    message = told["err_msg"]
    pattern = re.escape(message).replace(r"\ ", " ")
    pattern = re.sub(r"(Raise_msg:).*(  ClassName)", r"\1 .*\2", pattern, flags=re.DOTALL)
    pattern = re.sub(r"(rpc package error:).*", r"\1 .*", pattern, flags=re.DOTALL)
    pattern = re.sub(r"batch: \\\[\d+\\\]", r"batch: \\[\\d+\\]", pattern)
    pattern = re.sub(r"\\\(log_id=\d+\\\)", r"\\(log_id=\\d+\\)", pattern)
    if pattern != re.escape(message).replace(r"\ ", " "):
        response["err_msg_pattern"] = pattern


def record(model: Path, labels: Path, out: Path) -> None:
    cases = all_cases()
    with tempfile.TemporaryDirectory() as scratch:
        for service in SERVICES:
            process = start(service, model, labels, Path(scratch))
            try:
                for case in cases:
                    if case["service"] != service:
                        continue
                    exchange = exchange_http if case["door"] == "http" else exchange_grpc
                    began = time.monotonic()
                    try:
                        case["response"] = exchange(case["request"])
                    except (OSError, http.client.HTTPException) as error:
                        case["response"] = {"broken": type(error).__name__}
                    annotate(case["response"])
                    shown = json.dumps(case["response"], ensure_ascii=False)[:300]
                    print(f"{time.monotonic() - began:6.2f} s {case['door']} {case['case']}: {shown}")
            finally:
                stop(process)
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    out.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="serving model folder of ResNet50_vd")
    parser.add_argument("--labels", type=Path, default=LABELS, help="label list, 'id name' per line")
    parser.add_argument("--out", type=Path, default=HERE / "pipeline_protocol.json")
    parser.add_argument("--serve", choices=SERVICES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    model = options.model.resolve()
    if options.serve:
        serve(options.serve, str(model), str(options.labels.resolve()), **SERVICES[options.serve])
    else:
        record(model, options.labels.resolve(), options.out)


if __name__ == "__main__":
    main()
