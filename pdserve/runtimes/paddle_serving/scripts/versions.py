"""Prints as JSON what an interpreter has: its version and, for each MODULE=PACKAGE,… given, the package's.

Run by the interpreter that is asked, which may be any from Python 3.6 on.
"""

import importlib.util
import json
import platform
import sys
from typing import Optional


def version_of(package: str) -> Optional[str]:
    try:
        from importlib.metadata import PackageNotFoundError, version
    except ImportError:  # before Python 3.8
        import pkg_resources

        found = pkg_resources.working_set.by_key.get(package.lower())
        return found.version if found else None
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # of a package above it
        return False


def main() -> None:
    packages = {}
    for wanted in sys.argv[1:]:
        module, _, names = wanted.partition("=")
        found = [(name, version_of(name)) for name in names.split(",")]
        packages[module] = {
            "there": is_there(module),
            "version": next(("{} {}".format(*each) for each in found if each[1]), None),
        }
    print(json.dumps({"python": platform.python_version(), "packages": packages}))


if __name__ == "__main__":
    main()
