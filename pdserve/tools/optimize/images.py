"""The images that calibrate and those that compare: found, read, and kept apart."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pdserve.errors import ImageError, UsageError
from pdserve.progress import Progress
from pdserve.vision.image_files import find_images

LEAST = 8  # images, to calibrate or to compare with
FEW = 100  # below this a calibration is told to be thin; 300 is what NNCF asks for
MOST_COMPARED = 1000  # of those that nobody chose for it
TASK = "reading"


@dataclass(frozen=True)
class Picture:
    """A readable image file and the SHA-256 of its content, 32 bytes."""

    path: Path
    digest: bytes

    def read(self) -> bytes:
        """The file's bytes. Raises ImageError where it has gone since."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise ImageError(f"Cannot read {self.path}: {error.strerror}.") from error


@dataclass(frozen=True)
class Skipped:
    """A file that is no image to the model, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Sets:
    """``shared``: there were too few images to keep the two apart."""

    calibration: tuple[Picture, ...]
    comparison: tuple[Picture, ...]
    shared: bool = False


def find(given: Sequence[Path], option: str) -> list[Path]:
    """Files, and the images in folders at any depth. Raises UsageError for what has none."""
    found = []
    for path in given:
        if path.is_dir():
            inside = find_images(path)
            if not inside:
                raise UsageError(f"{option}: the folder {path} has no images.")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UsageError(f"{option}: there is no file or folder {path}.")
    return found


def read(
    paths: Sequence[Path], prepare: Callable[[bytes], object], progress: Progress
) -> tuple[list[Picture], list[Skipped]]:
    """Those that can be prepared, each content once, in the order of their digests; and the others."""
    pictures: dict[bytes, Picture] = {}
    skipped = []
    progress.start(TASK, len(paths), 0)
    for path in paths:
        try:
            data = path.read_bytes()
            digest = hashlib.sha256(data).digest()
            if digest not in pictures:
                prepare(data)
                pictures[digest] = Picture(path, digest)
        except ImageError as error:
            skipped.append(Skipped(path, error.message))
        except OSError as error:
            skipped.append(Skipped(path, f"{error.strerror}."))
        progress.advance(TASK, 1)
    progress.done(TASK)
    return [pictures[digest] for digest in sorted(pictures)], skipped


def choose(calibration: Sequence[Picture], comparison: Sequence[Picture] | None, samples: int) -> Sets:
    """Keep the two sets apart, the same way whenever the images are the same.

    Of images given for both (``comparison`` None), in the order of their digests, every other one
    calibrates, at most ``samples``, and the rest are compared, at most MOST_COMPARED. Of two sets, what is
    in the second does not calibrate. Where that leaves less than LEAST of either, all serve for both.
    Raises UsageError for fewer than LEAST.
    """
    first = list(calibration)
    if comparison is None:
        second = first[1::2][:MOST_COMPARED]
        apart = first[::2]
        both = first
    else:
        second = list(comparison)
        compared = {picture.digest for picture in second}
        apart = [picture for picture in first if picture.digest not in compared]
        both = second
    if len(first) < LEAST:
        raise _too_few("calibrate", len(first), "--calibration")
    if len(apart) >= LEAST and len(second) >= LEAST:
        return Sets(tuple(apart[:samples]), tuple(second))
    if len(both) < LEAST:
        raise _too_few("compare", len(both), "--images")
    return Sets(tuple(first[:samples]), tuple(both[:MOST_COMPARED]), shared=True)


def enough(comparison: Sequence[Picture]) -> Sets:
    """The set where nothing is calibrated. Raises UsageError for fewer than LEAST."""
    if len(comparison) < LEAST:
        raise _too_few("compare", len(comparison), "--images")
    return Sets((), tuple(comparison))


def digest(pictures: Sequence[Picture]) -> str:
    """SHA-256 (hex) of a set: of its images' digests, in order."""
    return hashlib.sha256(b"".join(sorted(p.digest for p in pictures))).hexdigest()


def _too_few(purpose: str, count: int, option: str) -> UsageError:
    return UsageError(
        f"There are {count} images to {purpose} with, and it takes at least {LEAST}; give more with {option} "
        "(a few hundred like those that will be served are good)."
    )
