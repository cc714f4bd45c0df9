"""A request to the service that was started, as its callers send them: it is ready when that is answered."""

import base64
import http.client
import io
import json
import time

from pdserve.errors import EngineError

SECONDS = 600
_PAUSE_S = 0.05

Fields = dict[str, str]


def picture(side: int = 256) -> str:
    """The base64 of a grey PNG, large enough for the usual crops."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (side, side), (127, 127, 127)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def ask(name: str, http_port: int | None, rpc_port: int) -> Fields:
    """Ask until there is an answer; its values by key. Over HTTP where that is open, which passes gRPC.

    Raises EngineError for an answer that says no, and after ten minutes.
    """
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        try:
            number, message, fields = _over_http(name, http_port) if http_port else _over_rpc(name, rpc_port)
        except (OSError, http.client.HTTPException):
            time.sleep(_PAUSE_S)
            continue
        if number:
            raise EngineError(f"Paddle Serving answers the first request with err_no {number}: {message}")
        return fields
    raise EngineError(f"Paddle Serving did not answer within {SECONDS} s.")


def _over_http(name: str, port: int) -> tuple[int, str, Fields]:
    """err_no, err_msg, values. Raises OSError or HTTPException where there is no answer yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        body = json.dumps({"key": ["image"], "value": [picture()]})
        connection.request("POST", f"/{name}/prediction", body)
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    if response.status == 503:  # the gateway is there, and the service behind it is not yet
        raise OSError("unavailable")
    if response.status != 200:
        raise EngineError(f"Paddle Serving answers the first request with HTTP {response.status}.")
    answer = json.loads(text)
    return answer["err_no"], answer["err_msg"], dict(zip(answer["key"], answer["value"], strict=True))


def _over_rpc(name: str, port: int) -> tuple[int, str, Fields]:
    import grpc

    from pdserve.formats.protos import pipeline

    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(
            pipeline.METHOD,
            request_serializer=pipeline.request_class().SerializeToString,
            response_deserializer=pipeline.response_class().FromString,
        )
        request = pipeline.request_class()(key=["image"], value=[picture()], name=name)
        try:
            answer = call(request, timeout=SECONDS)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise OSError("unavailable") from error
            raise EngineError(
                f"Paddle Serving answers the first request with {error.code().name}."
            ) from error
    return answer.err_no, answer.err_msg, dict(zip(answer.key, answer.value, strict=True))
