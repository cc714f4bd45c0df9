"""Decoder processes: what is decoded in them, how they are bounded, and how they end."""

import asyncio
import contextlib
import importlib.util
import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pdserve.errors import DeadlineError, ImageError, ImageTooLargeError, PdserveError
from pdserve.vision import decoder as module
from pdserve.vision.decode import MAX_PIXELS, decode_plain, plain
from pdserve.vision.decoder import Decoder
from pdserve.vision.header import Header, read_header
from tests.conftest import GOLDEN
from tests.vision.files import bmp, empty_scans, two_readings

SLOW = empty_scans(8000, 8000, 90)
"""More than a second on any machine."""

linux = pytest.mark.skipif(sys.platform != "linux", reason="for limits and /proc, which Linux has")


def png(size: tuple[int, int] = (40, 30)) -> bytes:
    out = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(out, "PNG")
    return out.getvalue()


def jpeg(image: Image.Image | None = None, **options: object) -> bytes:
    out = io.BytesIO()
    (image or Image.open(GOLDEN / "images" / "photo.jpg")).save(out, "JPEG", **options)
    return out.getvalue()


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    with contextlib.closing(Decoder(1)) as made:
        yield made


@pytest.fixture(scope="module")
def kept() -> Iterator[Decoder]:
    """One for all tests that leave it as it is."""
    with contextlib.closing(Decoder(1)) as made:
        yield made


def pids(decoder: Decoder) -> list[int]:
    return [process._popen.pid for process in decoder._idle]


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except OSError:
        return True


def wait_until(true, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_pixels_are_those_of_the_file(kept):
    data = png()
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image)
    made = kept.decode(data)
    assert (made == expected).all()
    assert made.flags.c_contiguous
    assert made.flags.writeable


def test_one_process_decodes_one_image_after_the_other(kept):
    kept.decode(png())
    before = pids(kept)
    for _ in range(3):
        kept.decode(png())
        with pytest.raises(ImageError):
            kept.decode(png()[:-20])
    assert pids(kept) == before


def test_what_is_plainly_ordinary_needs_no_process(decoder):
    data = (GOLDEN / "images" / "photo.jpg").read_bytes()
    assert decoder.decode(data).shape == (480, 640, 3)
    assert pids(decoder) == []


def test_any_buffer_will_do(kept):
    data = png()
    for buffer in (bytearray(data), memoryview(data)):
        assert (kept.decode(buffer) == kept.decode(data)).all()


def test_threads_may_share_one(kept):
    data = png()
    expected = kept.decode(data)
    made: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: made.append(kept.decode(data))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert all((each == expected).all() for each in made)


def test_limit_of_pixels_is_each_images_own(kept):
    data = png((40, 30))
    with pytest.raises(ImageTooLargeError):
        kept.decode(data, 1199)
    assert kept.decode(data, 1200).shape == (30, 40, 3)
    assert kept.decode(data, 10**12).shape == (30, 40, 3)


def test_what_the_decoder_sees_decides(kept):
    """The header says 10×10, as Pillow reads the file; libtiff sees 3000×2000."""
    data, header = two_readings(3000, 2000), Header("TIFF", 10, 10)
    with pytest.raises(ImageTooLargeError, match="more pixels than the limit of 1000000"):
        asyncio.run(kept.run(data, header, 1_000_000))


@linux
def test_a_file_gets_no_more_memory_than_its_header_promises(decoder):
    """Within the limit of pixels, yet 192 MB where the header promises some bytes."""
    with pytest.raises(ImageError):
        asyncio.run(decoder.run(two_readings(8000, 8000), Header("TIFF", 10, 10), MAX_PIXELS))
    assert decoder.decode(png()).shape == (30, 40, 3)


def test_a_crash_costs_one_image(decoder):
    decoder.decode(png())
    (first,) = pids(decoder)
    failed: list[ImageError] = []

    def decode() -> None:
        try:
            decoder.decode(SLOW)
        except ImageError as error:
            failed.append(error)

    thread = threading.Thread(target=decode)
    thread.start()
    wait_until(lambda: not decoder._idle)
    os.kill(first, getattr(signal, "SIGSEGV", signal.SIGTERM))
    thread.join()
    assert "made its decoder fail" in failed[0].message
    assert decoder.decode(png()).shape == (30, 40, 3)
    assert pids(decoder) != [first]


@linux
def test_it_starts_while_a_thread_imports_opencv(monkeypatch):
    """OpenCV's loader has its own folder in the search path then, where ``typing`` is not Python's."""
    folder = importlib.util.find_spec("cv2").submodule_search_locations[0]
    monkeypatch.setattr(sys, "path", [sys.path[0], folder, *sys.path[1:]])
    with contextlib.closing(Decoder(1)) as decoder:
        assert decoder.decode(png()).shape == (30, 40, 3)


def test_that_none_starts_is_no_fault_of_the_image(monkeypatch, tmp_path):
    (tmp_path / "cv2.py").write_text("raise ImportError")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with (
        contextlib.closing(Decoder(1)) as decoder,
        pytest.raises(PdserveError, match="exit code 1") as caught,
    ):
        decoder.decode(png())
    assert not isinstance(caught.value, ImageError)


def test_time_that_no_picture_needs_is_not_spent(decoder, monkeypatch):
    monkeypatch.setattr(Header, "seconds_allowed", 0.0)
    with pytest.raises(ImageError, match="to decode, far more than one of 8000×8000 pixels should"):
        decoder.decode(SLOW)


def test_a_time_out_ends_the_process(decoder):
    decoder.decode(png())
    (pid,) = pids(decoder)
    started = time.monotonic()
    with pytest.raises(DeadlineError, match="could not be decoded in time"):
        decoder.decode(SLOW, timeout_s=0.05)
    assert time.monotonic() - started < 1
    wait_until(lambda: gone(pid))
    assert decoder.decode(png()).shape == (30, 40, 3)


def test_the_deadline_of_who_waits_for_a_process_counts_too(decoder):
    async def both() -> list[object]:
        loop = asyncio.get_running_loop()
        header = read_header(SLOW, MAX_PIXELS)
        first = asyncio.create_task(decoder.run(SLOW, header, MAX_PIXELS))
        second = decoder.run(SLOW, header, MAX_PIXELS, loop.time() + 0.1)
        (late,) = await asyncio.gather(second, return_exceptions=True)
        done = first.done()
        first.cancel()
        (cancelled,) = await asyncio.gather(first, return_exceptions=True)
        return [late, done, cancelled]

    late, done, cancelled = asyncio.run(both())
    assert isinstance(late, DeadlineError)
    assert not done
    assert isinstance(cancelled, asyncio.CancelledError)


def test_small_images_do_not_wait_behind_large_ones(decoder):
    async def both() -> bool:
        first = asyncio.create_task(decoder.run(SLOW, read_header(SLOW, MAX_PIXELS), MAX_PIXELS))
        await asyncio.sleep(0)
        data = png()
        await decoder.run(data, read_header(data, MAX_PIXELS), MAX_PIXELS)
        done = first.done()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return done

    assert not asyncio.run(both())


def test_a_caller_that_leaves_ends_the_process(decoder):
    decoder.decode(png())
    (pid,) = pids(decoder)

    async def leave() -> None:
        task = asyncio.create_task(decoder.run(SLOW, read_header(SLOW, MAX_PIXELS), MAX_PIXELS))
        while not any(each._process for each in decoder._tasks):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    wait_until(lambda: gone(pid))


def test_a_decoder_that_is_closed_decodes_no_more():
    decoder = Decoder(1)
    decoder.decode(png())
    (pid,) = pids(decoder)
    decoder.close()
    assert gone(pid)
    with pytest.raises((ImageError, RuntimeError)):
        decoder.decode(png())


_PARENT = """
import sys, threading, time
from pdserve.vision.decoder import Decoder

def say():
    while not any(task._process for task in decoder._tasks):
        time.sleep(0.001)
    print(pid, flush=True)

decoder = Decoder(1)
decoder.decode(open(sys.argv[1], "rb").read())
pid = decoder._idle[0]._popen.pid
decoder._large.submit(int).result()  # CPython waits for ever for a thread whose start Ctrl-C has broken off
threading.Thread(target=say, daemon=True).start()
decoder.decode(open(sys.argv[2], "rb").read())
"""


@linux
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_their_parent_however_it_ends(end, tmp_path):
    """During a decoding, too; Ctrl-C in a terminal is the parent's to answer."""
    (tmp_path / "fast").write_bytes(png())
    (tmp_path / "slow").write_bytes(SLOW)
    command = [sys.executable, "-c", _PARENT, str(tmp_path / "fast"), str(tmp_path / "slow")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        pid = int(parent.stdout.readline())
        assert os.getpgid(pid) != os.getpgid(parent.pid)
        parent.send_signal(end)
        parent.wait(30)
    wait_until(lambda: gone(pid))


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_is_left_to_the_parent(sign, decoder):
    decoder.decode(png())
    (pid,) = pids(decoder)
    if sys.platform != "win32":
        os.kill(pid, sign)
    decoder.decode(png())
    assert pids(decoder) == [pid]


def test_in_this_process_opencv_decodes_nothing_larger_than_what_is_plain(tmp_path):
    code = (
        "import os, numpy as np; from pdserve.vision.resize import opencv; cv2 = opencv();"
        "assert 'OPENCV_IO_MAX_IMAGE_PIXELS' not in os.environ;"
        "import sys; data = np.fromfile(sys.argv[1], np.uint8);"
        "cv2.imdecode(data, cv2.IMREAD_COLOR)"
    )
    path = GOLDEN / "images" / "photo.jpg"
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 0
    (tmp_path / "large").write_bytes(SLOW)
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "large"], capture_output=True, check=False)
    assert b"MAX_IMAGE_PIXELS" in done.stderr


def test_no_more_processes_than_cores_or_eight(monkeypatch):
    for cores, count in ((1, 1), (4, 4), (64, 8)):
        monkeypatch.setattr(module, "cores", lambda cores=cores: cores)
        with contextlib.closing(Decoder()) as made:
            assert made._small._max_workers == count
            assert made._large._max_workers == max(1, count // 2)


# Judged by the rows


def halves(data: bytes) -> dict[str, bytes]:
    """A cut file with what is found behind it."""
    half = data[: len(data) // 2]
    return {
        "an end marker": half + b"\xff\xd9",
        "zeros": half + bytes(20_000),
        "zeros to its length": half + bytes(len(data) - len(half)),
        "zeros and an end marker": half + bytes(20_000) + b"\xff\xd9",
        "one byte": half + b"\xff" * 4096,
        "another": half + b" " * 4096 + b"\xff\xd9",
        "another picture": half + data,
        "its own end": half + data[-12:],
    }


SHAPES = {
    "rows": {},
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "progressive": {"progressive": True},
    "grey progressive": {"mode": "L", "progressive": True},
    "restarts": {"restart_marker_blocks": 4},
    "restarts by rows": {"restart_marker_rows": 1},
    "4:4:4": {"subsampling": 0},
    "turned": {"exif": 6},
}


def photo(shape: str) -> bytes:
    options = dict(SHAPES[shape])
    if orientation := options.pop("exif", 0):
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    with Image.open(GOLDEN / "images" / "photo.jpg") as image:
        return jpeg(image.resize((301, 203)).convert(options.pop("mode", "RGB")), **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_half_a_jpeg_is_refused_whatever_stands_behind_it(shape, kept):
    for what, data in halves(photo(shape)).items():
        try:
            kept.decode(data)
        except ImageError as error:
            assert error.message == "The JPEG image is truncated or broken."  # noqa: PT017 - of each in turn
        else:
            pytest.fail(f"half with {what} behind it was taken for a whole one")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_whole_jpeg_is_read_with_and_without_its_end_marker(shape, kept):
    data = photo(shape)
    expected = kept.decode(data)
    for whole in (data[:-1], data[:-2], data[:-2] + bytes(5000), data + bytes(5000), data + data):
        assert (kept.decode(whole) == expected).all()
    assert (kept.decode(data[:-2] + bytes(5000) + b"\xff\xd9") == expected).all()


def test_a_progressive_jpeg_without_its_last_scans_is_refused(kept):
    data = photo("progressive")
    at = len(data)
    while (at := data.rfind(b"\xff\xda", 0, at)) > 0:
        with pytest.raises(ImageError):
            kept.decode(data[:at] + b"\xff\xd9")


def test_a_flat_picture_whose_data_are_zeros_is_whole(kept):
    """Optimised tables give a flat area bits of 0 alone; nothing but the end tells it from a cut one."""
    data = jpeg(Image.new("L", (3000, 3000), 77), optimize=True)
    assert data[-20:-2] in (bytes(18), b"\0" * 17 + data[-3:-2])
    assert (kept.decode(data) == 77).all()
    assert (kept.decode(data[:-2]) == 77).all()


def test_a_grey_picture_is_no_cut_one(kept):
    for mode, colour in (("RGB", (128, 128, 128)), ("L", 128), ("CMYK", (127, 127, 127, 127))):
        data = jpeg(Image.new(mode, (64, 64), colour), quality=95)
        assert decode_plain(data, read_header(data, MAX_PIXELS)) is None  # looked at twice
        assert kept.decode(data).shape == (64, 64, 3)


@pytest.mark.parametrize("form", ["WEBP", "JPEG2000"])
def test_half_of_another_format_with_zeros_is_refused(form, kept):
    with Image.open(GOLDEN / "images" / "photo.jpg") as image:
        out = io.BytesIO()
        image.resize((301, 203)).save(out, form)
    data = out.getvalue()
    assert kept.decode(data).shape == (203, 301, 3)
    with pytest.raises(ImageError):
        kept.decode(data[: len(data) // 2].ljust(len(data), b"\0"))
    assert kept.decode(data + bytes(5000)).shape == (203, 301, 3)


@pytest.mark.parametrize("form", ["WEBP", "JPEG2000"])
def test_a_flat_one_is_not(form, kept):
    out = io.BytesIO()
    Image.new("RGB", (2000, 2000)).save(out, form, lossless=True)
    assert kept.decode(out.getvalue()).shape == (2000, 2000, 3)


@pytest.mark.parametrize(
    "masks", [(0x3FF00000, 0xFFC00, 0x3FF), (0xFF, 0xFF00, 0xFF0000), (0xFF0000, 0xFF00, 0xFF)]
)
def test_masks_of_a_bmp(masks, kept):
    """Of ten bits a channel, as some programs write, the upper eight count; red may be the lowest."""
    words = np.random.default_rng(5).integers(0, 1 << 30, (30, 40), np.uint32)
    made = kept.decode(bmp(40, 30, 32, masks=masks, pixels=words[::-1].astype("<u4").tobytes()))
    for channel, mask in enumerate(masks):
        lowest = (mask & -mask).bit_length() - 1
        values = (words & mask) >> lowest
        expected = values * 255 / (mask >> lowest)
        assert np.abs(made[:, :, channel] - expected).max() <= 1


def test_the_smallest_bmp(kept):
    """OS/2's header has 12 bytes."""
    data = struct.pack("<2sIHHIIHHHH", b"BM", 30, 0, 0, 26, 12, 1, 1, 1, 24) + b"\1\2\3\0"
    assert kept.decode(data).tolist() == [[[3, 2, 1]]]


def test_plain_or_in_a_process_the_pixels_are_the_same(kept):
    for path in sorted((GOLDEN / "images").glob("*.jpg")):
        data = path.read_bytes()
        header = read_header(data, MAX_PIXELS)
        if plain(header):
            here = decode_plain(data, header)
            assert (here == asyncio.run(kept.run(data, header, MAX_PIXELS))).all()
