"""Bodies of HTTP that are small or odd and cost much: JSON, forms, tensors."""

import contextlib
import socket
import threading

from pdserve.services.parsing import Bounds
from tests.attacks.attack import Target, attack
from tests.tiny import picture

JSON = {"Content-Type": "application/json"}
PIPELINE = "/imagenet/prediction"
# Of three million keys orjson makes an object in some seconds, which it does not interrupt.
UNCOUNTED = Bounds(10**9, 10**9)
LONGEST_S = 1.0


@attack(without={"pdserve.services.parsing:IN_A_THREAD": UNCOUNTED})
def three_million_keys(target: Target) -> None:
    """They are counted and refused before anything is made of them, and others are answered meanwhile."""
    body = b"{%s}" % b",".join(b'"k%d":1' % i for i in range(3_000_000))
    with target.watch() as seen:
        answer = target.http.post(target.route, content=body, headers=JSON)
    assert answer.status_code == 413, answer.text[:200]
    assert "more than" in answer.json()["error"]["message"]
    assert seen.health_s < LONGEST_S
    assert seen.grown_mb < 300
    target.good()


@attack(without={"pdserve.services.parsing:IN_A_THREAD": UNCOUNTED})
def three_million_keys_for_a_model(target: Target) -> None:
    """The same at the Open Inference Protocol's door, which takes long lists of numbers and nothing else."""
    body = b"{%s}" % b",".join(b'"k%d":1' % i for i in range(3_000_000))
    with target.watch() as seen:
        answer = target.http.post("/v2/models/tiny/infer", content=body, headers=JSON)
    assert answer.status_code == 413, answer.text[:200]
    assert "more than" in answer.json()["error"]
    assert seen.health_s < LONGEST_S
    assert seen.grown_mb < 300
    target.good()


@attack(without={"pdserve.services.parsing:IN_A_THREAD": UNCOUNTED})
def lists_in_lists(target: Target) -> None:
    """Brackets count as values: the collector of Python would look at each of the lists again and again."""
    body = b'{"images":[%s]}' % b",".join([b"[" * 500 + b"]" * 500] * 4000)
    with target.watch() as seen:
        answer = target.http.post(target.route, content=body, headers=JSON)
    assert answer.status_code == 413, answer.text[:200]
    assert seen.health_s < LONGEST_S


@attack(without={"pdserve.services.tensors:MAX_RANK": 10**9})
def a_tensor_of_many_dimensions(target: Target) -> None:
    """Its dimensions are counted before they are multiplied."""
    tensor = {"name": "x", "elem_type": 1, "shape": [2**31 - 1] * 15_000}
    with target.watch() as seen:
        answer = target.http.post(PIPELINE, json={"tensors": [tensor]}).json()
    assert answer["err_no"] == 8000
    assert answer["err_msg"].endswith("maximum supported dimension for an ndarray is 32, found 15000")
    assert seen.health_s < LONGEST_S


@attack(without={"pdserve.services.http.forms:_MAX_MARKS": 10**9})
def quotes_that_do_not_end(target: Target) -> None:
    """The heads of a form's parts have few parameters: a pattern looks at all of a head for each of them."""
    head = b"Content-Disposition: form-data; " + b';a="\\"' * 1300
    body = (b"--b\r\n" + head + b"\r\n\r\nx\r\n") * 120 + b"--b--\r\n"
    with target.watch() as seen:
        answer = target.http.post(
            target.route, content=body, headers={"Content-Type": "multipart/form-data; boundary=b"}
        )
    assert answer.status_code == 400
    assert "too many parameters" in answer.text
    assert seen.health_s < LONGEST_S
    target.good()


@attack(
    options=("--max-inflight-bytes", str(64 << 20)),
    without={"pdserve.services.budget:Budget._fits": lambda self, reservation, more: True},
)
def large_bodies_that_are_kept_open(target: Target) -> None:
    """Of twenty bodies all but the end is sent: the budget holds, and ordinary images are answered."""
    size = 24 << 20
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (
        target.route.encode(),
        size,
    )

    def send(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(head + bytes(size - 1))

    with target.watch() as seen, contextlib.ExitStack() as stack:
        opened = [stack.enter_context(target.connection()) for _ in range(20)]
        senders = [threading.Thread(target=send, args=(each,), daemon=True) for each in opened]
        for sender in senders:
            sender.start()
        for _ in range(5):
            target.good()
        for sender in senders:
            sender.join(30)
    assert seen.grown_mb < 150
    target.good()


POST = b"POST /v1/classification HTTP/1.1\r\nHost: localhost\r\n"
MB = 1 << 20


def chunked(part: bytes, count: int) -> bytes:
    return b"%x\r\n%b\r\n" % (len(part), part) * count


@attack(full=True, options=("--max-body-bytes", str(MB)), undefended_options=(), without={})
def a_body_of_unknown_length_over_the_limit(target: Target) -> None:
    """It is refused as soon as it is over the limit, and not read to its end."""
    with target.watch() as seen:
        answer = target.raw(
            POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(bytes(MB), 60),
            timeout_s=10,
            until=b"\r\n\r\n",
        )
    assert answer.startswith(b"HTTP/1.1 413 ") or not answer, answer[:80]  # a reset may have outrun it
    assert seen.grown_mb < 20


@attack(
    options=("--header-timeout-s", "1", "--body-timeout-s", "1"),
    undefended_options=("--header-timeout-s", "1"),
    without={},
)
def a_body_that_stands_still(target: Target) -> None:
    """Its sender is told, and the connection closed."""
    with target.connection(timeout_s=10) as opened:
        opened.sendall(POST + b"Content-Length: 1000\r\n\r\nx")
        assert opened.recv(65536).startswith(b"HTTP/1.1 408 ")


@attack(full=True, options=("--max-images", "4"), undefended_options=(), without={})
def more_images_than_a_request_may_have(target: Target) -> None:
    """They are counted before any is decoded, in a form and in JSON."""
    files = [("images", (str(i), picture((255, 0, 0)))) for i in range(5)]
    assert target.http.post("/v1/classification", files=files).status_code == 413
    assert target.http.post("/v1/classification", json={"images": ["QQ=="] * 5}).status_code == 413
