"""Run by a Python with PaddleX and its serving extra: asks PaddleX's own server, and writes what it answers.

    python record.py ARCHIVES IMAGES OUT [NAME…]

ARCHIVES: a folder of NAME_infer folders; IMAGES: one of photo.jpg and wide.png. Writes OUT/NAME.json for each
server of SERVERS: a list of exchanges. In a request's body ``@photo.jpg`` stands for that file in base64 and
``@key`` for the key of the index that was built last; of an answer, ``logId`` is "…" where the server has
made it, a key is "@key", and an image is its size and type. The files beside this one were recorded with
PaddleX 3.7.2, Paddle 3.3.1, FastAPI 0.165 and pydantic 2.13.
"""

import base64
import http.client
import http.server
import io
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PLAIN = {"engine": "paddle_static", "engine_config": {"run_mode": "paddle"}}
"""oneDNN fails on the detector, so Paddle runs it without."""
PHOTO, WIDE = "@photo.jpg", "@wide.png"


def model(part, name, **more):
    return {part: {"module_name": "-", "model_name": name, "batch_size": 1, **more}}


CLASSIFICATION = ("image_classification", model("ImageClassification", "PP-LCNet_x1_0", topk=5), {})
SHITU = (
    "PP-ShiTuV2",
    model("Detection", "PP-ShiTuV2_det", **PLAIN) | model("Recognition", "PP-ShiTuV2_rec"),
    {"index": None, "det_threshold": 0.5, "rec_threshold": 0.5, "rec_topk": 5},
)
# In this version a classifier gives each image the class ids of all, nested, and an embedder the features of
# all: its server answers 500 to almost everything. So both are asked twice: as installed, and with results of
# each image's own, by `own_results`.
SERVERS = {
    "classification_as_installed": CLASSIFICATION,
    "classification": CLASSIFICATION,
    "detection": ("object_detection", model("ObjectDetection", "PP-ShiTuV2_det", **PLAIN), {}),
    "shitu_as_installed": SHITU,
    "shitu": SHITU,
}


def common(path):
    """Requests that each route for one image gets: good ones, and each kind of bad one."""

    def post(name, body, **more):
        return {"name": name, "method": "POST", "path": path, "body": body} | more

    plain = {"visualize": False}
    yield post("an image", {"image": PHOTO, **plain})
    yield post("a PNG", {"image": WIDE, **plain})
    yield post("drawn by default", {"image": PHOTO})
    yield post("visualize true", {"image": PHOTO, "visualize": True})
    yield post("visualize null", {"image": PHOTO, "visualize": None})
    for value in ("yes", "off", 1, 0, 2, "maybe", []):
        yield post(f"visualize {json.dumps(value)}", {"image": PHOTO, "visualize": value})
    yield post("unknown field", {"image": PHOTO, **plain, "colour": "red"})
    yield post("logId", {"image": PHOTO, **plain, "logId": "mine"})
    yield post("logId of a bad request", {"image": 5, "logId": "mine"})
    yield post("logId of another bad request", {"image": "***", "logId": "mine"})
    yield post("logId, a number", {"image": 5, "logId": 7})
    yield post("no body", None)
    yield post("no JSON", "image=abc")
    yield post("JSON that is cut", '{"image": "abc", "topk": ')
    yield post("a list", [PHOTO])
    yield post("a text", '"abc"')
    yield post("null", "null")
    yield post("an empty object", {})
    for value in (None, 5, ["abc"], {"a": 1}, ""):
        yield post(f"image {json.dumps(value)}", {"image": value, **plain})
    yield post("not base64", {"image": "***", **plain})
    yield post("base64 without its padding", {"image": "QUJ", **plain})
    yield post("base64 with a line break", {"image": PHOTO, **plain}, broken=True)
    yield post("a data URL", {"image": "data:image/jpeg;base64," + PHOTO, **plain})
    yield post("base64 of a text", {"image": base64.b64encode(b"This is no image.").decode(), **plain})
    yield post("an address", {"image": "@address/photo.jpg", **plain})
    yield post("an address that is not there", {"image": "@address/no.jpg", **plain})
    yield post("an address where nobody answers", {"image": "http://127.0.0.1:9/photo.jpg", **plain})
    yield post("an address of a file", {"image": "file:///etc/hostname", **plain})
    for kind in ("text/plain", "application/octet-stream", None):
        yield post(f"content type {kind}", {"image": PHOTO, **plain}, type=kind)
    yield post(
        "content type with a charset", {"image": PHOTO, **plain}, type="application/json; charset=utf-8"
    )
    yield {"name": "GET", "method": "GET", "path": path}
    yield {"name": "PUT", "method": "PUT", "path": path, "body": {}}
    yield {"name": "OPTIONS", "method": "OPTIONS", "path": path}
    yield {"name": "unknown route", "method": "POST", "path": "/nothing", "body": {}}
    yield {"name": "health", "method": "GET", "path": "/health"}
    yield {"name": "health by POST", "method": "POST", "path": "/health", "body": {}}


def classification():
    path = "/image-classification"
    yield from common(path)
    for value in (1, 3, 3.0, "3", True, 0, -1, 2.5, "three", [3], None):
        body = {"image": PHOTO, "topk": value, "visualize": False}
        yield {"name": f"topk {json.dumps(value)}", "method": "POST", "path": path, "body": body}
    wrong = {"image": 5, "topk": 0, "visualize": "maybe"}
    yield {"name": "three wrong fields", "method": "POST", "path": path, "body": wrong}


def detection():
    path = "/object-detection"
    costly = ("an image", "visualize", "unknown field", "base64 with", "content type with", "an address")
    yield from (each for each in common(path) if not each["name"].startswith(costly))
    for value in (0.2, {"0": 0.2}, {"0": 0.99}, "low", [0.2], {"a": 0.2}, {"0": "low"}):
        body = {"image": WIDE, "threshold": value, "visualize": False}
        yield {"name": f"threshold {json.dumps(value)}", "method": "POST", "path": path, "body": body}


def shitu():
    def post(name, path, body):
        return {"name": name, "method": "POST", "path": f"/shitu-{path}", "body": body}

    pairs = [{"image": PHOTO, "label": "photo"}, {"image": WIDE, "label": "wide"}]
    yield post("build", "index-build", {"imageLabelPairs": pairs})
    for name, more in (
        ("plain", {}),
        ("rec -1", {"recThreshold": -1}),
        ("topk 1", {"topk": 1, "recThreshold": -1}),
        ("det 0.2", {"detThreshold": 0.2}),
        ("hamming", {"hammingRadius": 3.5}),
    ):
        body = {"image": WIDE, "indexKey": "@key", "visualize": False, **more}
        yield post(f"infer, {name}", "infer", body)
    yield post("infer, drawn", "infer", {"image": WIDE, "indexKey": "@key"})
    yield post(
        "infer, nothing found and drawn", "infer", {"image": WIDE, "indexKey": "@key", "recThreshold": 2}
    )
    yield post("infer without a key", "infer", {"image": WIDE})
    yield post("infer, unknown key", "infer", {"image": WIDE, "indexKey": "nobody"})
    yield post("infer, a path as key", "infer", {"image": WIDE, "indexKey": "../secret"})
    yield post("infer, empty key", "infer", {"image": WIDE, "indexKey": ""})
    yield post("infer, a number as key", "infer", {"image": WIDE, "indexKey": 5})
    for value in (0, "a", 2.5):
        yield post(
            f"infer, topk {value}",
            "infer",
            {"image": WIDE, "indexKey": "@key", "topk": value, "visualize": False},
        )
    wrong = {"image": WIDE, "indexKey": "@key", "recThreshold": "a", "visualize": False}
    yield post("infer, recThreshold a", "infer", wrong)
    yield post("add", "index-add", {"imageLabelPairs": pairs[:1], "indexKey": "@key"})
    yield post("add nothing", "index-add", {"imageLabelPairs": [], "indexKey": "@key"})
    yield post("add, unknown key", "index-add", {"imageLabelPairs": pairs[:1], "indexKey": "nobody"})
    yield post("add without a key", "index-add", {"imageLabelPairs": pairs[:1]})
    yield post("add, no pairs", "index-add", {"indexKey": "@key"})
    yield post(
        "add, a pair without a label",
        "index-add",
        {"imageLabelPairs": [{"image": PHOTO}], "indexKey": "@key"},
    )
    yield post(
        "add, wrong types", "index-add", {"imageLabelPairs": [{"image": 1, "label": 2}, 3], "indexKey": 4}
    )
    yield post(
        "add, not an image",
        "index-add",
        {"imageLabelPairs": [{"image": "QUJD", "label": "a"}], "indexKey": "@key"},
    )
    yield post("remove", "index-remove", {"ids": [0], "indexKey": "@key"})
    yield post("remove again", "index-remove", {"ids": [0], "indexKey": "@key"})
    yield post("remove nothing", "index-remove", {"ids": [], "indexKey": "@key"})
    yield post("remove, no numbers", "index-remove", {"ids": ["1", 2.0, "a", 1.5, None], "indexKey": "@key"})
    yield post("remove, no list", "index-remove", {"ids": 1, "indexKey": "@key"})
    yield post("remove, unknown key", "index-remove", {"ids": [0], "indexKey": "nobody"})
    yield post(
        "infer, after changes",
        "infer",
        {"image": WIDE, "indexKey": "@key", "visualize": False, "recThreshold": -1},
    )
    yield post("remove all", "index-remove", {"ids": [1, 2], "indexKey": "@key"})
    yield post("infer, nothing in it", "infer", {"image": WIDE, "indexKey": "@key", "visualize": False})
    yield post("add to none", "index-add", {"imageLabelPairs": pairs, "indexKey": "@key"})
    yield post("build nothing", "index-build", {"imageLabelPairs": []})
    yield post("build, no pairs", "index-build", {})
    yield post("build, an empty label", "index-build", {"imageLabelPairs": [{"image": PHOTO, "label": ""}]})


def few(requests, *names):
    return lambda: (each for each in requests() if each["name"] in names)


REQUESTS = {
    "classification": classification,
    "classification_as_installed": few(classification, "an image", "drawn by default", "topk 1", "topk 3"),
    "detection": detection,
    "shitu": shitu,
    "shitu_as_installed": few(shitu, "build", "infer, plain", "infer without a key"),
}


def serve(name, archives, port):
    """PaddleX's server for one of SERVERS, until it is ended."""
    import os

    import matplotlib

    os.environ["PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK"] = "True"
    fonts = Path(matplotlib.__file__).parent / "mpl-data" / "fonts" / "ttf"
    os.environ["PADDLE_PDX_LOCAL_FONT_FILE_PATH"] = str(fonts / "DejaVuSans.ttf")  # else it downloads one
    from paddlex import create_pipeline
    from paddlex.inference.serving.basic_serving import create_pipeline_app, run_server

    pipeline_name, parts, more = SERVERS[name]
    parts = {
        part: {**given, "model_dir": str(Path(archives) / f"{given['model_name']}_infer")}
        for part, given in parts.items()
    }
    config = {"pipeline_name": pipeline_name, "SubModules": parts, **more}
    pipeline = create_pipeline(config=config, device="cpu")
    if not name.endswith("_as_installed"):
        own_results(pipeline)
    run_server(create_pipeline_app(pipeline, config), host="127.0.0.1", port=port)


def own_results(pipeline):
    """Let classifier and embedder give each image its own ids and its own features."""
    from paddlex.inference.models.image_classification.processors import Topk

    call = Topk.__call__
    Topk.__call__ = lambda self, preds, topk=5: tuple(map(list, call(self, preds, topk)))
    embedder = getattr(pipeline, "rec_model", None)
    if embedder is None:
        return

    class Rows:
        def __call__(self, images, **kwargs):
            for image in images:
                for result in embedder(image, **kwargs):
                    yield {"feature": result["feature"][0]}

        predict = __call__

    pipeline.rec_model = Rows()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def record(name, archives, images, address):
    port, found, key = free_port(), [], None
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", name, archives, str(port)]
        process = subprocess.Popen(command, cwd=folder)
        try:
            wait(port, process)
            for request in REQUESTS[name]():
                answer = ask(port, request, images, address, key)
                text = json.dumps(answer.get("answer"))
                if made := re.search(r'"indexKey": "([0-9a-f-]{36})"', text):
                    key = made[1]
                shown = json.loads(text.replace(key, "@key")) if key else answer.get("answer")
                found.append(request | answer | {"answer": shown})
        finally:
            process.terminate()
            process.wait(60)
    return found


def wait(port, process):
    for _ in range(3600):
        assert process.poll() is None, "the server has ended"
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.5)
    raise TimeoutError("the server does not listen")


def filled(value, images, address, key, broken):
    if isinstance(value, dict):
        return {name: filled(each, images, address, key, broken) for name, each in value.items()}
    if isinstance(value, list):
        return [filled(each, images, address, key, broken) for each in value]
    if not isinstance(value, str):
        return value
    for name in ("photo.jpg", "wide.png"):
        if value.endswith(f"@{name}"):
            text = base64.b64encode((Path(images) / name).read_bytes()).decode()
            value = value.replace(f"@{name}", text[:100] + "\n" + text[100:] if broken else text)
    return value.replace("@address", address).replace("@key", key or "@key")


def ask(port, request, images, address, key):
    body = request.get("body")
    if not isinstance(body, (str, type(None))):
        body = json.dumps(filled(body, images, address, key, request.get("broken")))
    kind = request.get("type", "application/json")
    headers = {"Content-Type": kind} if kind and body is not None else {}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=900)
    # http.client would name a type of its own for a body without one.
    connection.request(request["method"], request["path"], None if body is None else body.encode(), headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    given = {"status": response.status, "type": response.headers.get("content-type")}
    if allow := response.headers.get("allow"):
        given["allow"] = allow
    return {"response": given, "answer": shown(json.loads(text))}


def shown(answer):
    if isinstance(answer, dict):
        if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", str(answer.get("logId"))):
            answer["logId"] = "…"
        if image := (answer.get("result") or {}).get("image"):
            from PIL import Image

            picture = Image.open(io.BytesIO(base64.b64decode(image)))
            answer["result"]["image"] = {"type": picture.format, "size": picture.size}
    return answer


def main(archives, images, out, *names):
    handler = type("Files", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    files = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: handler(*a, directory=images))
    threading.Thread(target=files.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{files.server_address[1]}"
    for name in names or SERVERS:
        found = record(name, archives, images, address)
        lines = ",\n".join(json.dumps(each, ensure_ascii=False) for each in found)
        (Path(out) / f"{name}.json").write_text(f"[\n{lines}\n]\n".replace(address, "@address"), "utf-8")
    files.shutdown()


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main(*sys.argv[1:])
