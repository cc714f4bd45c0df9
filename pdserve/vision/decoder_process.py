"""What runs in a decoder process: image files come by standard input, pixels go by standard output.

A program of its own, started by `pdserve.vision.decoder`; it imports OpenCV and NumPy and nothing else. A
request is `REQUEST` and the file's bytes, an answer `ANSWER` and the pixels, or words that say what is wrong.
Its own end is that of standard input: it comes when the parent closes it or dies, in whatever way.
"""

import os
import queue
import re
import signal
import struct
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

REQUEST = struct.Struct("<QQQd")
"""Length of the file; most pixels; most bytes, and most seconds of CPU time, that decoding may take."""
ANSWER = struct.Struct("<BII")
"""`IMAGE`, height and width; or `BROKEN`, `TOO_LARGE` or `REFUSED`, 0, and the length of the words."""

IMAGE, BROKEN, TOO_LARGE, REFUSED = range(4)

READY = b"!"
"""Written once, before the first answer, as soon as requests are taken."""

MAX_SCANS = 100
MAX_CHUNKS = 65536

_SLACK = 96 << 20  # bytes: what codecs take for tables, whatever the size
# What fills a file that was cut: a run of one byte. Compressed pictures have none that long, but flat ones.
_FILL = 16
_END = b"\xff\xd9"
# What libjpeg says (its jerror.h) where a scan ends before its last row, or lacks some in its middle.
_CUT = re.compile(rb"premature end|found marker 0x", re.IGNORECASE)
# The frame of a progressive JPEG, its number of components; scans, their number and what names them.
_PROGRESSIVE = re.compile(rb"\xff\xc2\0[\x0b\x11\x14]\x08....([\1\3\4])", re.DOTALL)
_SCANS = re.compile(rb"\xff\xda\0[\x08\x0a\x0c\x0e]([\1-\4])(.{11})", re.DOTALL)


class RefusedError(Exception):
    """An image that is not decoded; its words are for people."""


def main() -> None:
    """Answer requests until standard input ends."""
    for each in ("SIGINT", "SIGTERM"):  # the parent decides, though a terminal or a supervisor asks all
        signal.signal(getattr(signal, each), signal.SIG_IGN)
    requests_in, answers_out = os.fdopen(0, "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    noise = _quiet()
    if hasattr(os, "nice"):
        os.nice(5)
    requests: queue.SimpleQueue[tuple[tuple[int, int, int, float], bytes]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests_in, requests), daemon=True).start()
    import cv2

    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    _write(answers_out, READY)
    while True:
        (_, max_pixels, memory, seconds), data = requests.get()
        _limit(memory, seconds)
        try:
            image = decode(data, noise)
            height, width = image.shape[:2]
            if height * width > max_pixels:
                answer: tuple[int, Any] = TOO_LARGE, b""
            else:
                answer = IMAGE, image
        except RefusedError as error:
            answer = REFUSED, str(error).encode()
        except cv2.error as error:
            answer = TOO_LARGE if "CV_IO_MAX_IMAGE" in str(error) else BROKEN, b""
        except (MemoryError, ValueError, struct.error):  # too little memory, or numbers without sense
            answer = BROKEN, b""
        kind, content = answer
        shape = content.shape[:2] if kind == IMAGE else (0, len(content))
        _write(answers_out, ANSWER.pack(kind, *shape))
        _write(answers_out, content.data.cast("B") if kind == IMAGE else content)
        del data, answer, content


def decode(data: bytes, noise: int) -> Any:
    """H×W×3 uint8 RGB. ``noise``: the file into which libjpeg writes its warnings. Raises RefusedError."""
    if data[:2] == b"\xff\xd8":
        return _jpeg(data, noise)
    if data[:4] == b"\x89PNG":
        _check_chunks(data)
    image = _decoded(_with_masks(data) if data[:2] == b"BM" else data)
    if image is None:
        raise RefusedError
    if _filled(data) and (image != image[0, 0]).any():
        raise RefusedError
    return image


def _decoded(data: bytes) -> Any:
    import cv2
    import numpy as np

    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def _filled(data: bytes) -> bool:
    """Whether a sixteenth of a WebP or JPEG 2000 is one byte again and again, where its pixels end.

    Their decoders take what fills a cut file for pixels.
    """
    if data[:4] == b"RIFF":
        end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    elif data[4:6] == b"jP" or data[:2] == b"\xff\x4f":
        end = data.rfind(_END)
        if end < 0:
            return True
    else:
        return False
    length = max(64, end // 16)
    return data.endswith(data[end - 1 : end] * length, 0, end)


def _jpeg(data: bytes, noise: int) -> Any:
    """Decode a JPEG, whole with or without its end marker; judged by what libjpeg needed.

    Where data end too soon libjpeg goes on with grey, says so in a warning and nowhere else. Bytes that fill
    a cut file it takes for pixels; then more of them are there than it needs, which is a warning too, and the
    file without them is what is judged.
    """
    if (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise RefusedError(f"The JPEG image has {scans} scans, more than {MAX_SCANS}; save it anew.")
    end = data.rfind(_END)
    whole = data if end > data.rfind(b"\xff\xda") else data.rstrip(b"\xff") + _END
    image, said = _listened(whole, noise)
    if image is not None and b"extraneous bytes before marker 0xd9" in said:
        end = whole.rfind(_END)
        kept = whole[:end].rstrip(whole[end - 1 : end])
        if end - len(kept) >= _FILL:
            image, said = _listened(kept + _END, noise)
    if image is None or _CUT.search(said) or not _refined(data):
        raise RefusedError
    return image


def _refined(data: bytes) -> bool:
    """Whether the scans of a progressive JPEG, if it is one, bring all coefficients to their last bit.

    A file that was cut between two scans lacks some, and nothing in the others says so. A scan's header
    (ITU T.81, B.2.3) names components, first and last coefficient, and in half a byte the bits still left.
    """
    left: dict[int, list[int]] = {}
    frame = _PROGRESSIVE.search(data)
    for scan in _SCANS.finditer(data, frame.end() if frame else len(data)):
        count = scan[1][0]
        first, last, bits = scan[2][2 * count :][:3]
        for component in scan[2][: 2 * count : 2]:
            for place in range(first, min(last, 63) + 1):
                left.setdefault(component, [14] * 64)[place] = bits & 15
    return not frame or (len(left) == frame[1][0] and not any(map(any, left.values())))


def _listened(data: bytes, noise: int) -> tuple[Any, bytes]:
    """What comes of decoding, and what libjpeg says of it."""
    os.lseek(noise, 0, os.SEEK_SET)
    os.ftruncate(noise, 0)
    image = _decoded(data)
    os.lseek(noise, 0, os.SEEK_SET)
    return image, os.read(noise, 4096)


def _check_chunks(data: bytes) -> None:
    """Check that each chunk of a PNG ends inside the file, up to the last, and that one IHDR is there.

    OpenCV allocates a chunk's length, up to 4 GiB, before it looks for the bytes. Chunks (PNG
    specification, 5.3) are a length, a name, as many bytes and a checksum. Raises RefusedError.
    """
    at = 8
    for count in range(MAX_CHUNKS):
        if at + 12 > len(data):
            break
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        if name == b"IHDR" and count:
            break
        if end <= len(data) and name == b"IEND":
            return
        at = end
    else:
        raise RefusedError(f"The PNG image has more than {MAX_CHUNKS} chunks; save it anew.")
    raise RefusedError


def _with_masks(data: bytes) -> bytes:
    """A BMP of 32 bits whose masks stand behind a short header, with a header of version 4.

    There OpenCV looks at them; of the others it takes blue for the lowest byte, whatever they say. Version 4
    (BITMAPV4HEADER, 108 bytes) is the 40 bytes of version 1, masks of red, green, blue and alpha, the kind of
    colours, and 48 bytes that this kind needs not.
    """
    if len(data) < 66:
        return data
    length, bits, packing = struct.unpack_from("<I10xHI", data, 14)
    if (length, bits, packing) not in {(40, 32, 3), (52, 32, 3), (56, 32, 3)}:
        return data
    (pixels,) = struct.unpack_from("<I", data, 10)
    start = struct.pack("<4xI", 14 + 108)
    made = data[:6] + start + struct.pack("<I", 108) + data[18:66] + bytes(4) + b"BGRs" + bytes(48)
    return made + data[pixels:]


def _quiet() -> int:
    """Turn standard output and error away; a file that holds what is written to the latter."""
    import tempfile

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if hasattr(os, "memfd_create"):
        noise = os.memfd_create("warnings")
    else:
        noise = os.dup(tempfile.TemporaryFile().fileno())  # noqa: SIM115 - for as long as the process lives
    os.dup2(noise, 2)
    return noise


def _limit(memory: int, seconds: float) -> None:
    """Bound the next decoding's memory in bytes and CPU time in seconds, where the system can."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _set(resource.RLIMIT_CPU, int(used + seconds) + 1)
    if sys.platform == "linux":
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _set(resource.RLIMIT_AS, mapped + memory + _SLACK)


def _set(kind: int, value: int) -> None:
    import resource

    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _read(stream: BinaryIO, requests: "queue.SimpleQueue[Any]") -> None:
    """Read requests ahead of their turn, so that the input's end is noticed during a decoding too."""
    while True:
        head = REQUEST.unpack(_exactly(stream, REQUEST.size))
        requests.put((head, bytes(_exactly(stream, head[0]))))


def _exactly(stream: BinaryIO, count: int) -> bytearray:
    """So many bytes; ends the process where there are no more."""
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = stream.readinto(view)  # type: ignore[attr-defined]
        if not got:
            os._exit(0)
        view = view[got:]
    return data


def _write(stream: BinaryIO, data: Any) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[stream.write(view) :]
    except OSError:  # nobody waits for it
        os._exit(0)


if __name__ == "__main__":
    main()
