"""Checksums of files."""

import hashlib
from pathlib import Path

CHUNK = 1 << 20


def digest(path: Path, *algorithms: str) -> tuple[str, ...]:
    """Hexadecimal digests of a file, one per algorithm, in one reading. Raises OSError."""
    hashes = [hashlib.new(algorithm, usedforsecurity=False) for algorithm in algorithms]
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            for h in hashes:
                h.update(chunk)
    return tuple(h.hexdigest() for h in hashes)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file. Raises OSError."""
    return digest(path, "sha256")[0]
