"""What is kept of a model beside it, in the folder ``.pdserve``, and how one knows whose it is."""

import hashlib

from pdserve.errors import ModelError
from pdserve.formats.model_files import ModelFiles, parameter_files
from pdserve.formats.program import Program

FOLDER = ".pdserve"


def fingerprint(files: ModelFiles, program: Program) -> str:
    """SHA-256 (hex) of program and parameters: another one for an altered model. Raises ModelError."""
    total = hashlib.sha256()
    try:
        for path in (files.model, *parameter_files(files, program)):
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    total.update(chunk)
    except OSError as error:
        raise ModelError(f"Cannot read {error.filename}: {error.strerror}.") from error
    return total.hexdigest()
