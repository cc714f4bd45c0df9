"""``python -m tests.attacks.undefended [NAME…]``: is each attack red where its defence is missing?

Runs attacks against a server or commands whose defence is taken away, each in a process of its own that may
have 4 GB and a minute, and prints a table. Red (the attack's assertions fail, or the server falls) is what is
wanted; green means that the test would not notice if the defence went. Ends with 1 when one is green, or when
the server does not even start without its defence.
"""

import argparse
import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from tests.attacks.attack import Attack, Target, base_home
from tests.attacks.table import ATTACKS

LIMIT_S = 90
LIMIT_BYTES = 4 << 30
GREEN, RED, UNFIT = 0, 3, 4


def one(name: str, home: Path) -> int:
    """Run one attack without its defence, in this process; prints what happened as the last line."""
    # Writable memory of this process and of all that it starts; what is mapped from files does not count.
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    each = ATTACKS[name]
    options = each.options if each.undefended_options is None else each.undefended_options
    target = Target(home, each.service, without=name)
    with contextlib.closing(target):
        try:
            if each.service:
                target.serve(options, each.environ)
        except AssertionError as error:
            print(f"the server does not start: {str(error)[-300:]!r}")
            return UNFIT
        try:
            each.run(target)
        except (Exception, pytest.fail.Exception) as error:
            (*_, last) = traceback.extract_tb(error.__traceback__)
            print(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else last.line}")
            return RED
    print("nothing failed")
    return GREEN


def outcome(each: Attack, home: Path) -> tuple[str, str]:
    """Red or green, and why."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.attacks.undefended", "--one", each.name, "--home", str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    try:
        out, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return "red", f"not through in {LIMIT_S} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the server too, which is in its session
        process.wait()
    lines = out.strip().splitlines() or [""]
    verdict = {GREEN: "GREEN", RED: "red", UNFIT: "UNFIT"}.get(process.returncode, "UNFIT")
    return verdict, lines[-1][:160]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        sys.exit(one(given.one, given.home))
    if unknown := set(given.names) - set(ATTACKS):
        parser.error(f"no attack is named {', '.join(sorted(unknown))}")
    table = Table("attack", "kind", "defence", "without it", "because")
    bad = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = base_home(Path(folder) / "home")
        for each in (ATTACKS[name] for name in given.names or ATTACKS):
            verdict, why = outcome(each, home)
            bad += verdict != "red"
            print(f"{verdict:6} {each.name}: {why}", file=sys.stderr, flush=True)
            table.add_row(each.name, each.kind, "\n".join(each.without), verdict, why)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
