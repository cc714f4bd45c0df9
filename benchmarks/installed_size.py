"""How many bytes a server's packages take in its environment's site-packages.

Counted are the files of the named packages and of all that they require, as pip's records list them,
compiled ``.pyc`` files aside. What every server needs for this work whichever it is (COMMON: the engine,
NumPy, OpenCV, Pillow, faiss) is left out, with what that requires: the rest is the server's own.
"""

import re
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

# Paddle Serving's engine is Paddle, the others' is OpenVINO.
COMMON = (
    "numpy",
    "openvino",
    "paddlepaddle",
    "opencv-python-headless",
    "opencv-python",
    "pillow",
    "faiss-cpu",
)
# How an environment is made is no part of a server.
_TOOLS = {"pip", "setuptools", "wheel"}


def installed_mb(python: Path, roots: Iterable[str] | None, source: Path | None = None) -> float:
    """MB of the packages ``roots`` in an environment, and of what they require beside COMMON.

    ``roots`` None: all that is installed there. ``source``: a package's own folder, where it is installed as
    a link to that.
    """
    ask = "import sys, sysconfig; print(sysconfig.get_path('purelib')); print('%d.%d' % sys.version_info[:2])"
    printed = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True).stdout
    site, version = printed.splitlines()[-2:]
    there = {_name(each.metadata["Name"]): each for each in distributions(path=[site])}
    environment = {"python_version": version, "python_full_version": version + ".0"}
    common = _closure([name for name in COMMON if name in there], there, environment)
    mine = _closure(there if roots is None else roots, there, environment) - common - _TOOLS
    size = sum(_bytes(there[name]) for name in mine) + (_folder_bytes(source) if source else 0)
    return size / 1e6


def _closure(
    roots: Iterable[str], there: Mapping[str, Distribution], environment: Mapping[str, str]
) -> set[str]:
    """The packages, by name, and what they need of what is there, extras that are asked for included."""
    wanted = [Requirement(root) for root in roots]
    seen: set[tuple[str, frozenset[str]]] = set()
    while wanted:
        one = wanted.pop()
        name, extras = _name(one.name), frozenset(one.extras)
        if (name, extras) in seen or name not in there:
            continue
        seen.add((name, extras))
        for text in there[name].requires or ():
            need = Requirement(text)
            asked = [{**environment, "extra": extra} for extra in ("", *extras)]
            if need.marker is None or any(need.marker.evaluate(each) for each in asked):
                wanted.append(need)
    return {name for name, _ in seen}


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _bytes(one: Distribution) -> int:
    paths = [Path(str(one.locate_file(file))) for file in one.files or () if not str(file).endswith(".pyc")]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _folder_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc")
