"""Find and read the images that calibrate and those that compare, and keep the two sets apart."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pdserve.errors import ImageError, UsageError
from pdserve.files import read_errors
from pdserve.progress import Progress
from pdserve.vision.image_files import find_images

MIN_IMAGES = 8  # images, to calibrate or to compare with
FEW = 100  # calibration with fewer gives a note; NNCF asks for 300
MAX_COMPARED = 1000  # of those that were not chosen for it
READING = "reading"


@dataclass(frozen=True)
class ImageFile:
    """A readable image file and the SHA-256 of its content, 32 bytes."""

    path: Path
    digest: bytes

    def read(self) -> bytes:
        """The file's bytes. Raises ImageError where it cannot be read any more."""
        with read_errors(ImageError, self.path):
            return self.path.read_bytes()


@dataclass(frozen=True)
class Skipped:
    """A file that the model cannot take, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Sets:
    """``shared``: there were too few images to keep the two apart."""

    calibration: tuple[ImageFile, ...]
    comparison: tuple[ImageFile, ...]
    shared: bool = False


def find(given: Sequence[Path], option: str) -> list[Path]:
    """Files, and the images in folders at any depth. Raises UsageError where there are none."""
    found = []
    for path in given:
        if path.is_dir():
            inside = find_images(path).images
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
) -> tuple[list[ImageFile], list[Skipped]]:
    """Those that can be prepared, each content once, in the order of their digests; and the others."""
    files: dict[bytes, ImageFile] = {}
    skipped = []
    progress.start(READING, len(paths), 0)
    for path in paths:
        try:
            data = path.read_bytes()
            digest = hashlib.sha256(data).digest()
            if digest not in files:
                prepare(data)
                files[digest] = ImageFile(path, digest)
        except ImageError as error:
            skipped.append(Skipped(path, error.message))
        except OSError as error:
            skipped.append(Skipped(path, f"{error.strerror}."))
        progress.advance(READING, 1)
    progress.done(READING)
    return [files[digest] for digest in sorted(files)], skipped


def choose(calibration: Sequence[ImageFile], comparison: Sequence[ImageFile] | None, samples: int) -> Sets:
    """Keep the two sets apart, the same way whenever the images are the same.

    Of images given for both (``comparison`` None), in the order of their digests, every other one
    calibrates, at most ``samples``, and the rest are compared, at most MAX_COMPARED. Of two sets, what is
    in the second does not calibrate. Where that leaves less than MIN_IMAGES of either, all serve for both.
    Raises UsageError for fewer than MIN_IMAGES.
    """
    first = list(calibration)
    if comparison is None:
        second = first[1::2][:MAX_COMPARED]
        apart = first[::2]
        both = first
    else:
        second = list(comparison)
        compared = {file.digest for file in second}
        apart = [file for file in first if file.digest not in compared]
        both = second
    if len(first) < MIN_IMAGES:
        raise _too_few("calibrate", len(first), "--calibration")
    if len(apart) >= MIN_IMAGES and len(second) >= MIN_IMAGES:
        return Sets(tuple(apart[:samples]), tuple(second))
    if len(both) < MIN_IMAGES:
        raise _too_few("compare", len(both), "--images")
    return Sets(tuple(first[:samples]), tuple(both[:MAX_COMPARED]), shared=True)


def comparison_only(comparison: Sequence[ImageFile]) -> Sets:
    """The set where nothing is calibrated. Raises UsageError for fewer than MIN_IMAGES."""
    if len(comparison) < MIN_IMAGES:
        raise _too_few("compare", len(comparison), "--images")
    return Sets((), tuple(comparison))


def digest(files: Sequence[ImageFile]) -> str:
    """SHA-256 (hex) of a set: of its images' digests, in order."""
    return hashlib.sha256(b"".join(sorted(p.digest for p in files))).hexdigest()


def _too_few(purpose: str, count: int, option: str) -> UsageError:
    return UsageError(
        f"There are {count} images to {purpose} with, and it takes at least {MIN_IMAGES}; give more with "
        f"{option} (a few hundred like those that will be served are good)."
    )
