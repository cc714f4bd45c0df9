"""Reads small files that people and other programs wrote: bounded, and never waiting for one that is no file.

A name may be a pipe's, into which nobody writes, or a device's without an end; a text may be saved in UTF-16
by a Windows program. Each is an OSError whose ``strerror`` says what it is, as the end of a sentence.
"""

import codecs
import errno
import os
import select
import stat
from pathlib import Path

# Seconds to wait for the next bytes of a pipe: a shell's <(command) is one.
PATIENCE_S = 10.0

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_bytes(path: Path, most: int) -> bytes:
    """A file's content, at most ``most`` bytes. Raises OSError, also for more, and for a silent pipe."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file", str(path))
        data = bytearray()
        while len(data) <= most:
            try:
                part = os.read(descriptor, min(most + 1 - len(data), 1 << 20))
            except BlockingIOError:
                _wait(descriptor, path)
                continue
            if not part:
                return bytes(data)
            data += part
    finally:
        os.close(descriptor)
    unit = f"{most >> 20} MiB" if most >> 20 else f"{most >> 10} KiB"
    raise OSError(errno.EFBIG, f"it has more than {unit}", str(path))


def read_text(path: Path, most: int) -> str:
    """A UTF-8 file's content, without a byte order mark. Raises OSError as `read_bytes`, ValueError."""
    return decode_text(read_bytes(path, most))


def decode_text(data: bytes) -> str:
    """UTF-8 text without its byte order mark. Raises ValueError that says what it is instead."""
    zeros = data[:200].count(0)
    if data.startswith(_UTF_16) or zeros > len(data[:200]) // 3:
        raise ValueError("it is UTF-16 text, as some Windows programs save it; save it as UTF-8")
    return data.decode("utf-8-sig")


def reason(error: Exception) -> str:
    """Why a file cannot be read, as the end of a sentence."""
    text = error.strerror if isinstance(error, OSError) else None
    if isinstance(error, UnicodeDecodeError):
        line = error.object[: error.start].count(b"\n") + 1
        text = f"'utf-8' codec can't decode a byte of line {line}; save it as UTF-8"
    return " ".join((text or str(error)).split())


def _wait(descriptor: int, path: Path) -> None:
    ready, _, _ = select.select([descriptor], [], [], PATIENCE_S)
    if not ready:
        raise TimeoutError(errno.ETIMEDOUT, f"nothing has come from it for {PATIENCE_S:.0f} s", str(path))
