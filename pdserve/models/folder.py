"""Fetches an inference model from a folder of this machine: its files are copied, with a record."""

import shutil
from pathlib import Path

from pdserve import files
from pdserve.errors import FetchError, UsageError
from pdserve.formats.model_files import find_model_files, parameter_files, read_program
from pdserve.models.archive import LIMITS
from pdserve.models.catalog import Folder
from pdserve.models.fetch import Fetched, Job

# What says how a model is used, and its labels.
BESIDE = (".yml", ".yaml", ".txt")
LARGEST_BESIDE = 16 << 20


def fetch(job: Job, source: Folder) -> Fetched:
    """Copy the model of a folder: program, parameters, and the descriptions and labels beside them.

    Raises ModelError where the folder holds no model, UsageError for the folder that it would be copied to,
    FetchError for a file that cannot be read or is changed meanwhile and for a model of more bytes than an
    archive may hold, DiskError.
    """
    if source.path.resolve() == job.target.resolve():
        raise UsageError(
            f"{source.path} is {job.name} in pdserve's home already; "
            f"type `pdserve convert --model {job.name}`."
        )
    try:
        chosen = model_files(source.path)
        sizes = {path: path.stat().st_size for path in chosen}
        size = sum(sizes.values())
        if size > LIMITS.bytes:
            raise FetchError(
                f"The model in {source.path} has {files.format_size(size)}, more than "
                f"{files.format_size(LIMITS.bytes)}, the limit."
            )
        files.require_space(job.downloads, size, f"Copying {source.path}", job.free)
        job.progress.start(job.name, size, 0)
        with files.replace_folder(job.target) as folder:
            for path in chosen:
                if job.cancel.is_set():
                    raise FetchError(f"Copying {source.path} was interrupted; fetch it again.")
                place = folder / path.relative_to(source.path)
                place.parent.mkdir(parents=True, exist_ok=True)
                _copy(path, place, sizes[path])
                job.progress.advance(job.name, sizes[path])
            return job.finish(folder, str(source.path), None, size)
    except OSError as error:
        raise FetchError(
            f"Cannot read {error.filename or source.path}: {error.strerror or error}."
        ) from error


def model_files(folder: Path) -> list[Path]:
    """The files of an inference model that are in a folder. Raises ModelError where there is no model."""
    model = find_model_files(folder)
    beside = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in BESIDE and path.is_file() and path.stat().st_size <= LARGEST_BESIDE
    ]
    return list(dict.fromkeys([model.model, *parameter_files(model, read_program(model)), *beside]))


def _copy(path: Path, place: Path, size: int) -> None:
    with path.open("rb") as source, files.disk_errors(place), place.open("xb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
        if out.tell() != size:
            raise FetchError(f"{path} was changed while it was copied; fetch it again.")
