"""Decode image files in processes that can be ended: a codec that crashes or will not stop costs one image.

What is plainly ordinary (`pdserve.vision.decode.plain`) is decoded where it is asked for. All else goes to a
decoder process, whose memory and CPU time are bounded by what the header announces, and whose OpenCV refuses
more pixels than are allowed, whatever another reader made of the header. A process that exceeds a bound, or
whose caller no longer waits, is killed, and another takes its place.
"""

import asyncio
import atexit
import contextlib
import functools
import os
import select
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, TypeVar

import numpy as np

from pdserve.child_process import search_path
from pdserve.errors import DeadlineError, ImageError, ImageTooLargeError, PdserveError
from pdserve.machine import cores
from pdserve.vision import decoder_process
from pdserve.vision.decode import MAX_PIXELS, decode_plain
from pdserve.vision.decoder_process import ANSWER, IMAGE, READY, REQUEST, TOO_LARGE
from pdserve.vision.header import Buffer, Header, read_header
from pdserve.vision.types import Image8

MAX_PROCESSES = 8
"""Each takes 45 MB while it waits."""

SMALL_PIXELS = 4_194_304
"""Of an image that does not wait behind larger ones."""

# What a decoder has no need of, should a file make it do more than decode.
_SECRETS = frozenset(("PDSERVE_API_KEY", "HF_TOKEN"))
# Of CPU seconds allowed: how long they may take by the clock, where other work goes on.
_PATIENCE = 4
# Seconds to start in, which takes a quarter of one.
_START_S = 60
_PIPE = 1 << 20  # bytes; a pipe has 64 kB unless asked for more

if sys.platform == "linux":
    import fcntl

Filled = TypeVar("Filled", bytearray, Image8)


class Decoder:
    """Up to ``processes`` decoder processes, and half as many for large images. Thread-safe.

    They are started when first needed.
    """

    def __init__(self, processes: int | None = None) -> None:
        count = processes or min(cores(), MAX_PROCESSES)
        # A process has a thread that waits for it. Small images do not wait behind large ones.
        self._small = ThreadPoolExecutor(count, thread_name_prefix="pdserve-decoder")
        self._large = ThreadPoolExecutor(max(1, count // 2), thread_name_prefix="pdserve-decoder-large")
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._tasks: set[_Task] = set()
        self._closed = False

    def start(self, max_pixels: int = MAX_PIXELS) -> None:
        """Have a process ready for the first image that needs one. Waits for nothing."""
        with self._lock:
            if not self._idle and not self._closed:
                self._idle.append(_Process(max_pixels))

    def decode(self, data: Buffer, max_pixels: int = MAX_PIXELS, timeout_s: float | None = None) -> Image8:
        """An image file's bytes -> H×W×3 uint8 RGB, C-contiguous; waits for it.

        Raises ImageError for what is no image, broken or too costly, ImageTooLargeError for more than
        ``max_pixels`` pixels, DeadlineError after ``timeout_s`` seconds.
        """
        header = read_header(data, max_pixels)
        image = decode_plain(data, header)
        if image is not None:
            return image
        task = _Task()
        try:  # Ctrl-C may come while a thread is started
            return self._submit(task, data, header, max_pixels).result(timeout_s)
        except TimeoutError:
            raise _late() from None
        finally:
            task.end()

    async def run(
        self, data: Buffer, header: Header, max_pixels: int, deadline: float | None = None
    ) -> Image8:
        """Decode in a process, while the event loop goes on. ``deadline``: on the loop's clock.

        A call that is cancelled, or whose deadline passes, ends the decoding. Raises as `decode`.
        """
        task = _Task()
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.wrap_future(self._submit(task, data, header, max_pixels))
        except TimeoutError:
            raise _late() from None
        finally:
            task.end()

    def close(self) -> None:
        """End all processes; what waits for them gets an ImageError."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            tasks = list(self._tasks)
        for task in tasks:
            task.end()
        for process in idle:
            process.close()
        for threads in (self._small, self._large):
            threads.shutdown(wait=False, cancel_futures=True)

    def _submit(self, task: "_Task", data: Buffer, header: Header, max_pixels: int) -> "Future[Image8]":
        threads = self._small if max(header.pixels, header.buffered) <= SMALL_PIXELS else self._large
        return threads.submit(self._run, task, data, header, max_pixels)

    def _run(self, task: "_Task", data: Buffer, header: Header, max_pixels: int) -> Image8:
        """Decode one image, in a thread that waits for its process."""
        process = self._process(max_pixels)
        self._tasks.add(task)
        try:
            if not task.begin(process):
                raise _late()
            return process.decode(data, header, max_pixels)
        finally:
            self._tasks.discard(task)
            task.leave()
            self._put_back(process)

    def _process(self, max_pixels: int) -> "_Process":
        with self._lock:
            if self._closed:
                raise ImageError("The image is not decoded, since the program is stopping.")
            process = self._idle.pop() if self._idle else None
        # One that was started for more pixels looks at the number of each image too.
        if process and (process.max_pixels < max_pixels or process.gone()):
            process.close()
            process = None
        return process or _Process(max_pixels)

    def _put_back(self, process: "_Process") -> None:
        kept: _Process | None = process
        if process.ended:
            process.close()
            # Another one is ready when it is needed; it takes a quarter of a second to start.
            kept = None if self._closed else _Process(process.max_pixels)
        with self._lock:
            if kept and not self._closed:
                self._idle.append(kept)
                return
        if kept:
            kept.close()


class _Task:
    """One image on its way: `end` keeps it from beginning, or kills the process that decodes it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = False
        self._process: _Process | None = None

    def begin(self, process: "_Process") -> bool:
        """Whether somebody still waits."""
        with self._lock:
            if not self._over:
                self._process = process
            return not self._over

    def leave(self) -> None:
        with self._lock:
            self._process = None
            self._over = True

    def end(self) -> None:
        with self._lock:
            self._over = True
            if self._process:
                self._process.kill()


class _Process:
    """A decoder process. ``ended``: it can be used no more."""

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self.ended = False
        self._ready = False
        path = os.pathsep.join(filter(None, search_path()))
        own = {
            "OPENCV_IO_MAX_IMAGE_PIXELS": str(max_pixels),
            "OPENBLAS_NUM_THREADS": "1",  # it would map memory for threads that nobody uses
            "PYTHONPATH": path,
        }
        self._popen = subprocess.Popen(
            [sys.executable, "-P", decoder_process.__file__],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name not in _SECRETS} | own,
            start_new_session=True,  # Ctrl-C in a terminal is for the parent
        )
        assert self._popen.stdin
        assert self._popen.stdout
        self._requests, self._answers = self._popen.stdin, self._popen.stdout
        for pipe in (self._requests, self._answers):
            _widen(pipe)

    def decode(self, data: Buffer, header: Header, max_pixels: int) -> Image8:
        """Decode one image. Raises ImageError; PdserveError for a process that does not start."""
        self._await_start(header)
        seconds = header.seconds_allowed
        try:
            _write(self._requests, REQUEST.pack(len(data), max_pixels, header.bytes_needed, seconds))
            _write(self._requests, data)
            if not _readable(self._answers, _PATIENCE * seconds):
                raise TimeoutError
            kind, high, wide = ANSWER.unpack(_read(self._answers, bytearray(ANSWER.size)))
            if kind == IMAGE:
                return _read(self._answers, np.empty((high, wide, 3), np.uint8))
            words = _read(self._answers, bytearray(wide)).decode()
        except TimeoutError:
            self.kill()
            raise _too_slow(header) from None
        except (EOFError, OSError):
            self.kill()
            raise self._crashed(header) from None
        except BaseException:
            self.kill()  # what it would still write belongs to this image
            raise
        if kind == TOO_LARGE:
            raise ImageTooLargeError(
                f"The {header.format} image has more pixels than the limit of {max_pixels}, and than the "
                f"{header.width}×{header.height} that its header gives; send a smaller one."
            )
        raise ImageError(words or f"The {header.format} image is truncated or broken.")

    def _await_start(self, header: Header) -> None:
        """Wait until it takes images. What ends it before that is no fault of the first one."""
        if self._ready:
            return
        late = not _readable(self._answers, _START_S)
        if late or self._answers.read(1) != READY:
            if self.ended:  # by who waited for the image
                raise self._crashed(header)
            if late:
                self.kill()
            self.ended = True
            code = self._popen.wait()
            raise PdserveError(
                f"A decoder process does not start (exit code {code}), and without one no images but "
                f"ordinary JPEG are read; see what {sys.executable} -c 'import cv2' says."
            )
        self._ready = True

    def gone(self) -> bool:
        """Whether it can be used no more, or was killed from outside while it waited."""
        return self.ended or self._popen.poll() is not None

    def kill(self) -> None:
        """End it at once, from any thread. Waits for nothing."""
        self.ended = True
        self._popen.kill()

    def close(self) -> None:
        """Kill it and free what it has here, once nobody reads from it."""
        self.kill()
        self._popen.wait()
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):
                pipe.close()

    def _crashed(self, header: Header) -> ImageError:
        """The error for an image whose decoding has ended the process."""
        code = self._popen.wait()
        if code == -getattr(signal, "SIGXCPU", sys.maxsize):
            return _too_slow(header)
        return ImageError(f"The {header.format} image made its decoder fail (exit code {code}).")


def _too_slow(header: Header) -> ImageError:
    return ImageError(
        f"The {header.format} image takes more than {header.seconds_allowed:.0f} s to decode, far more than "
        f"one of {header.width}×{header.height} pixels should; save it anew."
    )


def _readable(stream: IO[bytes], seconds: float) -> bool:
    """Wait until there is something to read. On Windows pipes cannot be waited for: the answer is yes."""
    if sys.platform == "win32":
        return True
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _read(stream: IO[bytes], into: Filled) -> Filled:
    """Fill a buffer. Raises EOFError."""
    view = memoryview(into).cast("B")  # type: ignore[arg-type]
    while view:
        got = stream.readinto(view)  # type: ignore[attr-defined]
        if not got:
            raise EOFError
        view = view[got:]
    return into


def _write(stream: IO[bytes], data: Buffer) -> None:
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


def _widen(pipe: IO[bytes]) -> None:
    """Let a pipe hold more, for fewer turns between the processes, where the system allows it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)


_creating = threading.Lock()


def shared() -> Decoder:
    """The decoder of this process, for all that has none of its own; its processes end with this one."""
    with _creating:
        return _shared()


@functools.cache
def _shared() -> Decoder:
    decoder = Decoder()
    atexit.register(decoder.close)
    return decoder


def _late() -> DeadlineError:
    return DeadlineError("The image could not be decoded in time; give it more time, or send a smaller one.")
