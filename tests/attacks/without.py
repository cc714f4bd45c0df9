"""``python -m tests.attacks.without ARGUMENTS``: pdserve, or with -c Python code, without a defence.

PDSERVE_TEST_WITHOUT names the attack whose defence is taken away. Done where the module is loaded, so that
processes that multiprocessing spawns are without it too.
"""

import os
import sys
from importlib import import_module
from typing import Any


def take_away(name: str) -> None:
    """Put the attack's replacements in place, also where a module has imported the attribute by its name."""
    from tests.attacks.table import ATTACKS

    for where, replacement in ATTACKS[name].without.items():
        holder, attribute, original = find(where)
        setattr(holder, attribute, replacement)
        for module in tuple(sys.modules.values()):
            ours = getattr(module, "__name__", "").startswith("pdserve")
            if ours and vars(module).get(attribute) is original is not replacement:
                setattr(module, attribute, replacement)


def find(where: str) -> tuple[Any, str, Any]:
    """What holds an attribute, its name, and what it is. Raises ImportError, AttributeError."""
    module, _, path = where.partition(":")
    holder: Any = import_module(module)
    *outer, attribute = path.split(".")
    for each in outer:
        holder = getattr(holder, each)
    return holder, attribute, getattr(holder, attribute)


if "PDSERVE_TEST_WITHOUT" in os.environ:
    take_away(os.environ["PDSERVE_TEST_WITHOUT"])

if __name__ == "__main__":
    if sys.argv[1:2] == ["-c"]:
        code = sys.argv[2]
        sys.argv[:] = ["-c", *sys.argv[3:]]
        exec(compile(code, "<attack>", "exec"), {"__name__": "__main__"})
    else:
        from pdserve.cli import main

        main()
