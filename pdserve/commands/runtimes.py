"""The RUNTIMES table: what other than pdserve itself can run a service.

Adding a runtime is one file under ``pdserve/runtimes`` and one entry here; its parts are imported when used.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RuntimeEntry:
    """Another runtime. All but ``help`` are import strings "module:function".

    ``check(settings)`` raises UsageError, SettingsError for what it cannot serve; nothing is fetched before.
    ``serve(settings, home, python, environ)`` runs a service until SIGINT or SIGTERM.
    ``find(home, environ)`` describes what would run it; None where this system cannot. Raises PdserveError
    with the reason where it is missing.
    ``install(home, python, environ, progress)`` installs it: an object with path, python and versions.
    `pdserve export NAME` may write a service's folder for it: commands/exports.py.
    """

    help: str
    check: str
    serve: str
    find: str
    install: str


RUNTIMES: Mapping[str, RuntimeEntry] = {
    "paddle-serving": RuntimeEntry(
        "the published Paddle Serving 0.9.0, in its own Python",
        check="pdserve.runtimes.paddle_serving.unsupported:check",
        serve="pdserve.runtimes.paddle_serving.launch:serve",
        find="pdserve.runtimes.paddle_serving.interpreter:find",
        install="pdserve.runtimes.paddle_serving.install:install",
    )
}
