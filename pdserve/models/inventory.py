"""What is in pdserve's home: each model with its forms, their sizes, and what is wrong with them.

A model's forms are its folders ``NAME_infer``, ``NAME_serving`` and ``NAME_client``, and what was derived
from one of them and is kept in its ``.pdserve``: the ONNX form, int8.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pdserve.engines.int8 import FOLDER, REPORT
from pdserve.errors import PdserveError, UsageError
from pdserve.formats.inference_yml import Task, read_description
from pdserve.formats.model_files import find_model_files
from pdserve.formats.prototxt import SERVER_TEXT
from pdserve.formats.serving_model import folder_name, open_serving_model
from pdserve.models.home import Home, is_path

_ENDINGS = {"inference": "_infer", "serving": "_serving", "client": "_client"}
_HALF = re.compile(r"fp16\.onnx$")


@dataclass(frozen=True)
class Form:
    """One form of a model. ``bytes`` of an inference or serving form are without those derived from it.

    ``link``: where it leads, if the form is a link; what is there is not counted.
    """

    name: str
    path: Path
    bytes: int
    link: Path | None = None


@dataclass(frozen=True)
class StoredModel:
    """A model in the home. ``bytes``: on disk, each file once. ``problems``: what is wrong, in sentences.

    ``task`` is what its description says, None where that says nothing.
    """

    name: str
    forms: tuple[Form, ...]
    bytes: int
    problems: tuple[str, ...]
    task: Task | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that are the model, which hold all its forms."""
        return tuple(form.path for form in self.forms if form.name in _ENDINGS)


def check_name(name: str) -> None:
    """Raise UsageError for what is no name in the home but might lead out of it."""
    if not name or name.startswith(".") or is_path(name) or any(c in name for c in "/\\:\0"):
        raise UsageError(f"{name!r} is no name; `pdserve list` shows the names that are here.")


def models(home: Home) -> list[StoredModel]:
    """Every model in the home, sorted by name. Nothing here raises: what is wrong is in ``problems``."""
    found = [model for name in home.model_names() if (model := find(name, home))]
    for path in sorted(_folders(home)):
        if not _name(path):
            endings = ", ".join(_ENDINGS.values())
            problem = f"{path} is no form of a model: its name ends with none of {endings}."
            found.append(StoredModel(path.name, (), usage([path]), (problem,)))
    return found


def _folders(home: Home) -> list[Path]:
    with suppress(OSError):
        paths = [path for path in home.models.iterdir() if not path.name.startswith(".")]
        return [path for path in paths if path.is_dir() or path.is_symlink()]
    return []


def _name(folder: Path) -> str:
    """The name of the model whose form a folder is; empty for another folder."""
    return next((folder.name.removesuffix(end) for end in _ENDINGS.values() if folder.name.endswith(end)), "")


def find(name: str, home: Home) -> StoredModel | None:
    """A model in the home; None where there is none of this name. Raises UsageError for what is no name."""
    check_name(name)
    forms: list[Form] = []
    problems: list[str] = []
    for form, ending in _ENDINGS.items():
        folder = home.models / f"{name}{ending}"
        if folder.is_dir() or folder.is_symlink():
            forms.append(_form(form, folder))
            problems += _problems(form, folder)
    if not forms:
        return None
    folders = [form.path for form in forms if form.name in ("serving", "inference")]
    size, task = usage(form.path for form in forms), _task(reversed(folders), problems)
    return StoredModel(name, (*forms, *_derived(folders)), size, tuple(problems), task)


def examine(folder: Path) -> StoredModel:
    """A model's folder wherever it is: an inference model or a serving model. Nothing here raises."""
    form = "serving" if (folder / SERVER_TEXT).is_file() else "inference"
    forms, problems = (_form(form, folder), *_derived([folder])), list(_problems(form, folder))
    task = _task([folder], problems)
    return StoredModel(folder_name(folder), forms, usage([folder]), tuple(problems), task)


def _form(name: str, folder: Path) -> Form:
    link = None
    if folder.is_symlink():
        with suppress(OSError, RuntimeError):  # one that leads to itself
            link = folder.resolve()
    derived = usage([folder / FOLDER]) if name != "client" and not link else 0
    return Form(name, folder, usage([folder]) - derived, link)


def _derived(folders: Iterable[Path]) -> Iterator[Form]:
    """What was made of the model: ``.onnx`` files, and a folder with a report for each precision.

    One that was made of the inference model and of the serving model is one form, of both sizes.
    """
    found: dict[str, list[Path]] = {}
    for folder in folders:
        with suppress(OSError):
            for path in sorted((folder / FOLDER).iterdir()):
                if path.suffix == ".onnx":
                    found.setdefault("onnx fp16" if _HALF.search(path.name) else "onnx", []).append(path)
                elif (path / REPORT).is_file():
                    found.setdefault(path.name, []).append(path)
    for name in sorted(found):
        yield Form(name, found[name][-1], usage(found[name]))


def _problems(form: str, folder: Path) -> Iterator[str]:
    try:
        if not folder.is_dir():
            yield f"{folder} is a link that leads nowhere."
        elif form == "inference":
            find_model_files(folder)
        elif form == "serving":
            open_serving_model(folder)
    except PdserveError as error:
        yield error.message
    except OSError as error:
        yield f"Cannot read {folder}: {error.strerror}."


def _task(folders: Iterable[Path], problems: list[str]) -> Task | None:
    """The task that the first description names; what is wrong with one is added to the problems."""
    for folder in folders:
        try:
            if task := read_description(folder).task:
                return task
        except PdserveError as error:
            problems += [error.message] if error.message not in problems else []
    return None


def usage(paths: Iterable[Path], freed: bool = False) -> int:
    """The bytes of all files at and below these paths, each file once; links are not followed.

    ``freed``: of those alone that have no other name elsewhere, which are free when the paths are removed.
    What cannot be looked at, or is removed meanwhile, counts nothing.
    """
    seen: dict[tuple[int, int], list[int]] = {}
    for path in paths:
        for each in (path, *_below(path)):
            with suppress(OSError):
                status = os.lstat(each)
                if not stat.S_ISDIR(status.st_mode):
                    entry = seen.setdefault((status.st_dev, status.st_ino), [status.st_size, status.st_nlink])
                    entry[1] -= 1
    return sum(size for size, others in seen.values() if not freed or others <= 0)


def _below(path: Path) -> Iterator[Path]:
    if path.is_symlink():
        return
    for folder, _, files in os.walk(path):
        yield from (Path(folder) / name for name in files)
