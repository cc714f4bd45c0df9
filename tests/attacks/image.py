"""Images that cost more than they look like."""

import asyncio
import contextlib
import io
import os
import re
import signal
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from pdserve.errors import ImageError
from pdserve.vision.header import Header
from pdserve.vision.types import Image8
from tests.attacks import process
from tests.attacks.attack import Target, attack
from tests.conftest import GOLDEN
from tests.vision.files import empty_scans, two_readings

# 829 bytes of JPEG 2000, 64 megapixels: seconds on any machine.
SLOW = (Path(__file__).parents[1] / "data" / "images" / "flat_64_megapixels.jp2").read_bytes()


# What takes a defence's place.


def _decode(data: bytes) -> Image8:
    from pdserve.vision.resize import opencv

    cv2 = opencv()
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        image = None
    if image is None:
        raise ImageError("broken")
    return image


async def _in_a_thread(self: Any, data: bytes, header: Header, *_: object) -> Image8:
    return await asyncio.to_thread(_decode, data)


def _with_pillow(data: bytes) -> Header:
    with Image.open(io.BytesIO(data)) as image:
        return Header(str(image.format), *image.size)


_IN_THE_SERVER = {
    "pdserve.vision.decoder:Decoder.run": _in_a_thread,
    "pdserve.vision.resize:MAX_PIXELS_HERE": 1 << 30,
}


# What is done.


def _post(target: Target, data: bytes) -> httpx.Response:
    return target.http.post(target.route, content=data)


def _refused(answer: httpx.Response, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    return answer.text


@contextlib.contextmanager
def _seconds(limit: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < limit


def _children(target: Target) -> set[int]:
    """Decoder processes of the server."""
    return {pid for pid in process.tree(target.pid) if pid != target.pid}


def _ticks(pid: int) -> int:
    """CPU time of a process, 0 of one that is gone; in hundredths of a second."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def _busy(target: Target) -> int:
    """The decoder process that works, once one does."""
    before = {pid: _ticks(pid) for pid in _children(target)}
    for _ in range(600):
        for pid in _children(target):
            if _ticks(pid) - before.setdefault(pid, 0) > 20:
                return pid
        time.sleep(0.05)
    raise AssertionError("no decoder process works")


@attack(
    without={"pdserve.vision.tiff_header:read_tiff": lambda data: Header("TIFF", 10, 10), **_IN_THE_SERVER}
)
def a_tiff_that_two_readers_take_differently(target: Target) -> None:
    """22 kB, for one reader 10×10 pixels and for libtiff 196 million, are refused at once."""
    with target.watch() as seen, _seconds(5):
        _refused(_post(target, two_readings(14000, 14000)))
    assert seen.grown_mb < 150


@attack(without=_IN_THE_SERVER)
def scans_that_say_nothing(target: Target) -> None:
    """A progressive JPEG of some thousand empty scans is counted, not decoded."""
    with _seconds(5):
        assert "2001 scans" in _refused(_post(target, empty_scans(8000, 8000, 2000)))


@attack(
    options=("--timeout-ms", "1500"),
    without={"pdserve.services.service:Service._deadline": lambda self, timeout_s: None},
)
def a_slow_picture_and_the_time_limit(target: Target) -> None:
    """Whoever sends pictures that decode for many seconds gets 504 in time, and others are answered."""
    answers: list[tuple[int, float]] = []

    def send() -> None:
        started = time.monotonic()
        status = httpx.post(target.running.url + target.route, content=SLOW, timeout=60).status_code
        answers.append((status, time.monotonic() - started))

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    target.good()
    for thread in threads:
        thread.join()
    assert [status for status, _ in answers] == [504] * 3
    assert max(took for _, took in answers) < 4


@attack(without={"pdserve.vision.decoder:_Task.end": lambda self: None})
def a_caller_that_leaves_while_its_picture_is_decoded(target: Target) -> None:
    """The work for a caller that hangs up ends."""
    head = f"POST {target.route} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(SLOW)}\r\n\r\n"
    with target.connection() as opened:
        opened.sendall(head.encode() + SLOW)
        pid = _busy(target)
    end = time.monotonic() + 2
    while pid in _children(target):
        assert time.monotonic() < end, "it is decoded for nobody"
        time.sleep(0.02)


@attack(without=_IN_THE_SERVER)
def a_picture_that_crashes_its_decoder(target: Target) -> None:
    """A crash of native code costs the one image; here a signal stands for it."""
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(_post(target, SLOW)))
    thread.start()
    os.kill(_busy(target), signal.SIGSEGV)
    thread.join()
    assert "made its decoder fail" in _refused(answers[0])


def _form(data: bytes, count: int) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (f"{n}.png", data)) for n in range(count)]


@attack(
    options=("--max-request-pixels", "1000000"),
    without={"pdserve.services.budget:PixelCount.add": lambda self, pixels: None},
)
def small_files_of_many_pixels_in_one_form(target: Target) -> None:
    """The pixels of a request's images are counted together, before they are decoded."""
    out = io.BytesIO()
    Image.new("RGB", (300, 300)).save(out, "PNG")
    answer = target.http.post(target.route, files=_form(out.getvalue(), 20))
    assert "more than 1000000 pixels in all" in answer.text
    assert answer.text.count("body_too_large") == 9


@attack(without={"pdserve.services.replica:decode_plain": lambda data, header: _decode(data)})
def half_a_picture_for_a_whole_one(target: Target) -> None:
    """Half a JPEG is refused, with zeros or an end marker behind it too."""
    data = (GOLDEN / "images" / "photo.jpg").read_bytes()
    half = data[: len(data) // 2]
    for behind in (b"\xff\xd9", bytes(20_000), bytes(20_000) + b"\xff\xd9"):
        assert "truncated" in _refused(_post(target, half + behind))
    assert _post(target, data[:-2]).status_code == 200


@attack(without={"pdserve.vision.header:READERS": ((re.compile(b""), "PPM", _with_pillow),)})
def a_comment_that_does_not_end(target: Target) -> None:
    """A comment of 20 MB in a PPM is not looked through."""
    with target.watch() as seen:
        _refused(_post(target, b"P6 #" + b"a" * 20_000_000 + b"\n1 1 255\nabc"))
    assert seen.health_s < 2


@attack(without={"pdserve.vision.header:MAX_PIECES": 1 << 40})
def a_header_of_very_many_pieces(target: Target) -> None:
    """Five million segments of a JPEG are not gone through."""
    with target.watch() as seen:
        _refused(_post(target, b"\xff\xd8\xff\xe0\0\2" + b"\xff\xfe\0\2" * 5_000_000))
    assert seen.health_s < 1


@attack(without=_IN_THE_SERVER)
def a_chunk_that_promises_gigabytes(target: Target) -> None:
    """A PNG's chunk gets no memory for bytes that are not there."""
    head = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    with target.watch() as seen:
        _refused(
            _post(target, b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0x70000000) + b"IDAT" + bytes(500))
        )
    assert seen.grown_mb < 150
