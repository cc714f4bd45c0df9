"""Requests that are made to take long, for each parser: what a door gets, by name."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass

from pdserve.formats.protos import message, pipeline

MB = 1 << 20
JSON = "application/json"
FORM = "multipart/form-data; boundary=b"
V1, EMBEDDINGS, GALLERY, PIPELINE = (
    "/v1/classification",
    "/v1/embeddings",
    "/v1/gallery",
    "/imagenet/prediction",
)
PADDLEX = "/image-classification"
OIP, OIP_RPC = "/v2/models/classification/infer", "ModelInfer"


@dataclass(frozen=True)
class Hostile:
    """A request. ``path``: of HTTP; a method's name for a message of gRPC, empty for Paddle Serving's."""

    path: str
    body: Callable[[], bytes]
    content_type: str = JSON
    method: str = "POST"
    query: Callable[[], bytes] = bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


def _list(key: str, entry: str, count: int) -> bytes:
    return b'{"%s":[%s]}' % (key.encode(), b",".join([entry.encode()] * count))


def _long(key: str, text: bytes) -> bytes:
    return b'{"%s":["%s"]}' % (key.encode(), text)


def _tensor(**fields: object) -> bytes:
    return json.dumps({"tensors": [{"name": "x", "elem_type": 1, **fields}]}).encode()


def _part(head: bytes, content: bytes = b"x") -> bytes:
    return b"--b\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + content + b"\r\n"


_FILE = b'name="images"; filename="a"'
_IMAGE = base64.b64encode(bytes(48)).decode()


def _message(**fields: object) -> bytes:
    return bytes(pipeline.request_class()(**fields).SerializeToString())


def _tensors(count: int, **fields: object) -> bytes:
    request = pipeline.request_class()()
    for _ in range(count):
        request.tensors.add(**fields)
    return bytes(request.SerializeToString())


def _npy(count: int) -> bytes:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1," * 4000 + b"), }"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    return _tensors(count, name="x", elem_type=13, byte_data=data)


def _input(shape: str, datatype: str, data: bytes, more: str = "") -> bytes:
    head = f'"name":"image","shape":{shape},"datatype":"{datatype}"{more}'
    return b'{"inputs":[{' + head.encode() + (b',"data":' + data if data else b"") + b"}]}"


def _behind(shape: str, datatype: str, raw: bytes) -> Hostile:
    """A tensor's bytes behind the JSON."""
    head = _input(shape, datatype, b"", f',"parameters":{{"binary_data_size":{len(raw)}}}')
    return Hostile(OIP, lambda: head + raw, headers=((_LENGTH, b"%d" % len(head)),))


def _infer(**fields: object) -> bytes:
    return bytes(message("inference.ModelInferRequest")(**fields).SerializeToString())


def _contents(datatype: str, shape: list[int], **contents: object) -> bytes:
    tensor = {"name": "image", "datatype": datatype, "shape": shape, "contents": contents}
    return _infer(model_name="classification", inputs=[tensor])


_LENGTH = b"inference-header-content-length"


def _texts(path: str, key: str) -> dict[str, Hostile]:
    """What any JSON door gets that takes images in base64 under a key."""
    return {
        "many images": Hostile(path, lambda: _list(key, '"aaaa"', MB)),
        "many that are no base64": Hostile(path, lambda: _list(key, '"!"', MB)),
        "images of 64 kB": Hostile(path, lambda: _list(key, f'"{"A" * 64 * 1024}"', 400)),
        "one image of 32 MB": Hostile(path, lambda: _long(key, b"A" * 32 * MB)),
        "a line break after each character": Hostile(path, lambda: _long(key, b"A\\n" * 8 * MB)),
        "blanks alone": Hostile(path, lambda: _long(key, b" " * 32 * MB)),
        "escapes alone": Hostile(path, lambda: _long(key, b"\\u0041" * 4 * MB)),
        "escaped quotes": Hostile(path, lambda: _long(key, b'\\"' * 8 * MB)),
        "backslashes": Hostile(path, lambda: _long(key, b"\\" * 16 * MB)),
        "characters of three bytes": Hostile(path, lambda: _long(key, "猫".encode() * 8 * MB)),
        "surrogates": Hostile(path, lambda: _long(key, b"\\ud800" * 4 * MB)),
        "a data: URL": Hostile(path, lambda: _long(key, b"data:" + b"x" * 32 * MB + b";base64,AAAA")),
        "many keys": Hostile(path, lambda: b"{%s}" % b",".join(b'"k%d":1' % i for i in range(MB))),
        "one key again and again": Hostile(
            path, lambda: b"{%s}" % b",".join([b'"%s":[]' % key.encode()] * MB)
        ),
        "deep lists": Hostile(path, lambda: b"[" * 8 * MB),
        "deep objects": Hostile(path, lambda: b'{"a":' * 2 * MB),
        "many deep lists": Hostile(path, lambda: _list(key, "[" * 500 + "]" * 500, 8000)),
        "a number of many digits": Hostile(path, lambda: _list(key, "1" * 16 * MB, 1)),
        "many numbers of many digits": Hostile(path, lambda: _list(key, "1" * 4000, 250)),
        "blanks between": Hostile(path, lambda: b"{" + b" " * 32 * MB + b"}"),
        "no UTF-8": Hostile(path, lambda: b"\xff" * 16 * MB),
        "no UTF-8 in a text": Hostile(path, lambda: _long(key, b"\xff" * 16 * MB)),
        "quotes alone": Hostile(path, lambda: b'"' * 16 * MB),
        "a text without an end": Hostile(path, lambda: b'{"%s":["' % key.encode() + b"A" * 32 * MB),
    }


def _named(cases: dict[str, Hostile], name: str) -> dict[str, Hostile]:
    return {f"{name}: {title}": case for title, case in cases.items()}


HOSTILE: dict[str, Hostile] = {
    **_named(_texts(V1, "images"), "v1"),
    "embeddings: many images": Hostile(EMBEDDINGS, lambda: _list("input", '"aaaa"', MB)),
    "embeddings: many keys": Hostile(EMBEDDINGS, lambda: _list("input", '{"k":1}', MB)),
    "embeddings: one image of 32 MB": Hostile(
        EMBEDDINGS, lambda: b'{"model":"tiny","input":"%s"}' % (b"A" * 32 * MB)
    ),
    "gallery: many images": Hostile(GALLERY, lambda: _list("images", '"aaaa"', MB)),
    "gallery: one image of 32 MB": Hostile(
        GALLERY, lambda: b'{"images":[{"image":"%s","label":"x"}]}' % (b"A" * 32 * MB)
    ),
    **_named(_texts(PIPELINE, "value"), "pipeline"),
    "embeddings: a name of 16 MB": Hostile(EMBEDDINGS, lambda: b'{"model":"%s"}' % (b"x" * 16 * MB)),
    "gallery: a label of 16 MB": Hostile(
        GALLERY, lambda: b'{"images":[{"image":"%s","label":"%s"}]}' % (_IMAGE.encode(), b"x" * 16 * MB)
    ),
    "gallery: many labels": Hostile(
        GALLERY, lambda: _list("images", f'{{"image":"{_IMAGE}","label":"x"}}', MB // 8)
    ),
    "gallery: many ids": Hostile(GALLERY, bytes, "", "DELETE", lambda: b"id=1&" * 6500),
    "gallery: a long id": Hostile(GALLERY, bytes, "", "DELETE", lambda: b"id=" + b"1" * 32_000),
    "v1: many parameters": Hostile(V1, lambda: b"x", "image/png", "POST", lambda: b"a=&" * 10_000),
    "pipeline: keys and values": Hostile(
        PIPELINE,
        lambda: json.dumps({"key": [f"i{i}" for i in range(300_000)], "value": ["QQ=="] * 300_000}).encode(),
    ),
    "pipeline: keys of one name": Hostile(
        PIPELINE, lambda: json.dumps({"key": ["i"] * MB, "value": ["QQ=="] * MB}).encode()
    ),
    "pipeline: a tensor of rank 150,000": Hostile(PIPELINE, lambda: _tensor(shape=[2**31 - 1] * 150_000)),
    "pipeline: a tensor of rank 15,000": Hostile(PIPELINE, lambda: _tensor(shape=[2**31 - 1] * 15_000)),
    "pipeline: a tensor of many numbers": Hostile(
        PIPELINE, lambda: _tensor(shape=[1], float_data=[1] * 1_000_000)
    ),
    "pipeline: a tensor of 15,000 numbers": Hostile(
        PIPELINE, lambda: _tensor(shape=[15_000], float_data=[1.5] * 15_000)
    ),
    "pipeline: many tensors": Hostile(
        PIPELINE, lambda: _list("tensors", '{"name":"x","elem_type":1,"shape":[1],"float_data":[1]}', 100_000)
    ),
    "pipeline: a tensor of bytes": Hostile(PIPELINE, lambda: _tensor(elem_type=13, byte_data="A" * 32 * MB)),
    "pipeline: a tensor of a long text": Hostile(
        PIPELINE, lambda: _tensor(elem_type=12, str_data=["A" * 32 * MB])
    ),
    "pipeline: a long logid": Hostile(PIPELINE, lambda: b'{"logid":"%s"}' % (b"1" * 16 * MB)),
    "form: many fields": Hostile(V1, lambda: _part(b"name=a") * 300_000 + b"--b--\r\n", FORM),
    "form: many files": Hostile(V1, lambda: _part(_FILE) * 300_000 + b"--b--\r\n", FORM),
    "form: many files of the gallery": Hostile(GALLERY, lambda: _part(_FILE) * 300_000 + b"--b--\r\n", FORM),
    "form: a file of 32 MB": Hostile(V1, lambda: _part(_FILE, b"x" * 32 * MB) + b"--b--\r\n", FORM),
    "form: near boundaries": Hostile(V1, lambda: _part(_FILE, b"\r\n--" * 8 * MB) + b"--b--\r\n", FORM),
    "form: bare boundaries": Hostile(V1, lambda: b"--b" + b"\r\n--b" * 4 * MB, FORM),
    "form: no boundary": Hostile(V1, lambda: b"x" * 32 * MB, FORM),
    "form: a long boundary": Hostile(
        V1, lambda: b"--" + b"b" * 16 * MB, "multipart/form-data; boundary=" + "b" * 1000
    ),
    "form: many headers": Hostile(V1, lambda: (b"--b\r\n" + b"A: b\r\n" * 1300 + b"\r\n\r\n") * 500, FORM),
    "form: parameters": Hostile(V1, lambda: _part(b"a=b;" * 2000 + _FILE) * 128 + b"--b--\r\n", FORM),
    "form: quotes that do not end": Hostile(V1, lambda: _part(b';a="\\"' * 1300) * 128 + b"--b--\r\n", FORM),
    "form: a type whose quotes do not end": Hostile(
        V1, lambda: _part(_FILE), "multipart/form-data" + ';a="\\"' * 5000 + "; boundary=b"
    ),
    "gRPC: no message": Hostile("", lambda: b"\xff" * MB),
    "gRPC: keys and values": Hostile("", lambda: _message(key=["k"] * MB, value=["x"] * MB)),
    "gRPC: a value of 32 MB": Hostile("", lambda: _message(key=["k"], value=["A" * 32 * MB])),
    "gRPC: a value with line breaks": Hostile("", lambda: _message(key=["k"], value=["A\n" * 8 * MB])),
    "gRPC: a value that is no UTF-8": Hostile(
        "", lambda: b"\x0a\x01k\x12\x80\x80\x80\x08" + b"\xff" * 16 * MB
    ),
    "gRPC: a key of 16 MB": Hostile("", lambda: _message(key=["k" * 16 * MB], value=["x"])),
    "gRPC: a name of 16 MB": Hostile("", lambda: _message(name="k" * 16 * MB)),
    "gRPC: empty tensors": Hostile("", lambda: b"\x1a\x00" * 4 * MB),
    "gRPC: unknown fields": Hostile("", lambda: b"\x78\x01" * 4 * MB),
    "gRPC: groups": Hostile("", lambda: b"\x7b" * 4 * MB),
    "gRPC: a tensor of rank 2,000,000": Hostile(
        "", lambda: _tensors(1, elem_type=1, shape=[2**31 - 1] * 2_000_000)
    ),
    "gRPC: a tensor of 16,000,000 numbers": Hostile("", lambda: _tensors(1, int_data=[1] * 16_000_000)),
    "gRPC: a tensor of unpacked numbers": Hostile(
        "", lambda: b"\x1a\x80\x80\x80\x04" + b"\x08\x01" * 4 * MB
    ),
    "gRPC: many tensors": Hostile("", lambda: _tensors(100_000, name="x", elem_type=1)),
    "gRPC: array files": Hostile("", lambda: _npy(64)),
    "gRPC: an array file of 32 MB": Hostile(
        "", lambda: _tensors(1, elem_type=13, byte_data=b"\x93NUMPY\x02\x00\x00\xff\xff\x01" + b"(" * 32 * MB)
    ),
    "paddlex: one image of 32 MB": Hostile(
        PADDLEX, lambda: b'{"visualize":false,"image":"%s"}' % (b"A" * 32 * MB)
    ),
    "paddlex: an image with line breaks": Hostile(
        PADDLEX, lambda: b'{"visualize":false,"image":"%s"}' % (b"A\\n" * 8 * MB)
    ),
    "paddlex: many fields": Hostile(PADDLEX, lambda: b'{"image":"%s"}' % (b'","k":"' * MB)),
    "paddlex: many that are no number": Hostile(PADDLEX, lambda: _list("topk", "{}", 6_600)),
    "oip: many images": Hostile(OIP, lambda: _input(f"[{MB}]", "BYTES", b'["aaaa"%s]' % (b',"aaaa"' * MB))),
    "oip: one image of 32 MB": Hostile(OIP, lambda: _input("[1]", "BYTES", b'["%s"]' % (b"A" * 32 * MB))),
    "oip: 16,000,000 numbers": Hostile(
        OIP, lambda: _input("[16000000]", "FP32", b"[1%s]" % (b",1" * 15_999_999))
    ),
    "oip: pixels as 16,000,000 numbers": Hostile(
        OIP, lambda: _input("[1,2000,2000,3]", "UINT8", b"[[255]%s]" % (b",[255]" * 11_999_999))
    ),
    "oip: brackets": Hostile(OIP, lambda: _input("[1]", "FP32", b"[" * 16 * MB)),
    "oip: lists between texts": Hostile(
        OIP, lambda: _input("[1]", "FP32", b'[1,"a"%s]' % (b',1,"a"' * 4 * MB))
    ),
    "oip: many inputs": Hostile(OIP, lambda: _list("inputs", '{"name":"x"}', MB)),
    "oip: a shape of many extents": Hostile(OIP, lambda: _input(f"[1{',1' * 15_000}]", "FP32", b"[1]")),
    "oip: 48 MB of pixels": _behind("[1,4096,4096,3]", "UINT8", bytes(48 * MB)),
    "oip: 48 MB of numbers": _behind("[1,3,2048,2048]", "FP32", bytes(48 * MB)),
    "oip: 48 MB of JSON before a byte": Hostile(
        OIP,
        lambda: _input("[1]", "BYTES", b'["%s"]' % (b"A" * 48 * MB)) + b"x",
        headers=((_LENGTH, b"%d" % (48 * MB + len(_input("[1]", "BYTES", b'[""]')))),),
    ),
    "oip: texts behind": _behind("[1000000]", "BYTES", bytes(4 * MB)),
    "oip gRPC: 48 MB of pixels": Hostile(
        OIP_RPC,
        lambda: _infer(
            model_name="classification",
            inputs=[{"name": "image", "datatype": "UINT8", "shape": [1, 4096, 4096, 3]}],
            raw_input_contents=[bytes(48 * MB)],
        ),
    ),
    "oip gRPC: 16,000,000 numbers": Hostile(
        OIP_RPC, lambda: _contents("INT64", [16_000_000], int64_contents=[2**40] * 16_000_000)
    ),
    "oip gRPC: many texts": Hostile(OIP_RPC, lambda: _contents("BYTES", [MB], bytes_contents=[b""] * MB)),
    "oip gRPC: a text of 32 MB": Hostile(
        OIP_RPC, lambda: _contents("BYTES", [1], bytes_contents=[b"A" * 32 * MB])
    ),
    "oip gRPC: many inputs": Hostile(
        OIP_RPC, lambda: _infer(model_name="classification", inputs=[{"name": "x"}] * 300_000)
    ),
    "oip gRPC: many parameters": Hostile(
        OIP_RPC, lambda: _infer(parameters={str(n): {"int64_param": n} for n in range(100_000)})
    ),
    "oip gRPC: a shape of many extents": Hostile(OIP_RPC, lambda: _contents("FP32", [1] * 16_000_000)),
}  # fmt: skip
