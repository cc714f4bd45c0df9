"""One request of the pipeline protocol to a server, over HTTP or gRPC, and its answer."""

import base64
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx

from pdserve.formats.protos import pipeline
from tests.running import Server, environment

# The program of the published client: a line of JSON in, one out.
_CLIENT = """
import json, sys
from paddle_serving_server.pipeline import PipelineClient
wanted = json.load(sys.stdin)
client = PipelineClient()
client.connect([wanted["target"]])
answer = client.predict(feed_dict=wanted["feed"], fetch=wanted["fetch"])
print(json.dumps([answer.err_no, list(answer.key), list(answer.value)]))
"""


@dataclass(frozen=True)
class Answer:
    """``err_no``, and the values by key."""

    err_no: int
    fields: dict[str, str]


def encoded(*images: bytes) -> dict[str, str]:
    """Images by key, as the protocol has them."""
    return {f"image_{i}": base64.b64encode(image).decode() for i, image in enumerate(images)}


def over_http(server: Server, name: str, body: Any) -> tuple[int, Answer | None]:
    """POST a body (an object, or text as it is) to a service; the status, and the answer of 200."""
    content = body if isinstance(body, str) else json.dumps(body)
    response = httpx.post(f"{server.url}/{name}/prediction", content=content, trust_env=False, timeout=200)
    if response.status_code != 200:
        return response.status_code, None
    answer = response.json()
    return 200, Answer(answer["err_no"], dict(zip(answer["key"], answer["value"], strict=True)))


def over_rpc(server: Server, **fields: Any) -> Answer:
    """A Request of these fields."""
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(server.target, options=options) as channel:
        call = channel.unary_unary(
            pipeline.METHOD,
            request_serializer=pipeline.request_class().SerializeToString,
            response_deserializer=pipeline.response_class().FromString,
        )
        answer = call(pipeline.request_class()(**fields), timeout=200)
    return Answer(answer.err_no, dict(zip(answer.key, answer.value, strict=True)))


def by_published_client(
    python: Path, server: Server, feed: dict[str, str], fetch: Sequence[str], folder: Path
) -> Answer:
    """The published PipelineClient's own request. ``folder``: where it leaves its logs."""
    wanted = json.dumps({"target": server.target, "feed": feed, "fetch": list(fetch)})
    done = subprocess.run(
        [str(python), "-c", _CLIENT],
        input=wanted,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(folder),
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    number, keys, values = json.loads(done.stdout.splitlines()[-1])
    return Answer(number, dict(zip(keys, values, strict=True)))
