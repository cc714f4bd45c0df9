"""Brings a model that a command needs and that is not here: fetches and converts it."""

import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from pdserve.errors import ModelError
from pdserve.files import sha256, user_path
from pdserve.models import catalog, find, record
from pdserve.models.address import entry_for, is_source
from pdserve.models.home import Home, is_path
from pdserve.progress import SILENT, Progress

Report = Callable[[str], None]
"""Takes a line that says which step was done."""


def is_ready(wanted: str, home: Home, config_dir: Path = Path()) -> bool:
    """Whether `ensure` has nothing to do: a model that is here and converted, or a folder."""
    if not is_source(wanted) and (is_path(wanted) or Path(wanted).is_dir() or (config_dir / wanted).is_dir()):
        return True
    name = find.model_name(wanted)
    return find.conversion_state(name, home) == "current" and not _is_newer(wanted, name, home)


def ensure(
    wanted: str,
    home: Home,
    *,
    mirrors: Sequence[str] = (),
    offline: bool = False,
    progress: Progress = SILENT,
    report: Report = lambda line: None,
    config_dir: Path = Path(),
) -> str:
    """Fetch and convert the model of a name or address where it is missing.

    Returns what `find.open_model` takes. ``mirrors`` and ``offline`` are added to what the environment says
    (``PDSERVE_MIRROR``, ``PDSERVE_OFFLINE``). A model that was fetched again is converted again, unless
    something would be lost that was done to the serving model, and so is an archive of this machine that was
    written again. A folder is left to `find.open_model`. Raises
    ModelError for a name that is not known, OfflineError, and what `fetch` and `convert` raise.
    """
    if is_ready(wanted, home, config_dir):
        return wanted
    name = find.model_name(wanted)
    newer = _is_newer(wanted, name, home)
    if newer or not (home.inference_model(name).is_dir() or home.serving_model(name).is_dir()):
        if not is_source(wanted) and name not in catalog.load():
            find.find_serving_model(wanted, home)  # raises, with the nearest names
        entry = entry_for(wanted if is_source(wanted) else name)
        if entry.task == "dataset":
            raise ModelError(f"{name} is a data set, and no model; type `pdserve fetch {name}`.")
        fetch_missing(
            entry, home, mirrors=mirrors, offline=offline, force=newer, progress=progress, report=report
        )
    _convert(name, home, progress, report)
    return wanted


def fetch_missing(
    entry: catalog.Entry,
    home: Home,
    *,
    mirrors: Sequence[str] = (),
    offline: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
    report: Report = lambda line: None,
) -> None:
    """Fetch a model or a data set unless it is here, and with ``force`` again; see `ensure`."""
    from pdserve.files import format_size
    from pdserve.models.fetch import fetch, policy_of

    policy = policy_of(os.environ, offline)
    got = fetch(entry, home, mirrors=mirrors, force=force, progress=progress, policy=policy)
    if got.action == "fetched":
        size = f", {format_size(got.bytes)}" if got.bytes else ""
        report(f"{entry.name}: fetched from {got.origin}{size}")


def _is_newer(wanted: str, name: str, home: Home) -> bool:
    """Whether an archive of this machine is another one than was fetched from its place."""
    source, path = home.inference_model(name), user_path(wanted)
    if not is_source(wanted) or not path.is_file() or not source.is_dir():
        return False
    known = record.read(source)
    if known is None or known.source != entry_for(wanted).source.address:
        return False  # of another archive: whoever opens it says so
    status = path.stat()
    # Only one that was written since is read.
    untouched = status.st_mtime < datetime.fromisoformat(known.date).timestamp()
    return status.st_size != known.bytes or not (untouched or sha256(path) == known.sha256)


def _convert(name: str, home: Home, progress: Progress, report: Report) -> None:
    from pdserve.locks import file_lock

    with file_lock(home.root / "downloads" / f"{name}.lock", name, progress):
        # Another process may have converted it while this one waited.
        state = find.conversion_state(name, home)
        if state == "edited":
            report(
                f"{name}: was fetched again since it was converted, and changed by hand, so it is used as it "
                f"is; `pdserve convert --model {name} --force` converts it again"
            )
        elif state != "current":
            made = find.convert_fetched(name, home)
            report(f"{name}: converted, {made.path}")
