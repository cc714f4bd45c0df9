"""The EXPORTS table: what ``pdserve export NAME`` can write.

A new one is a function and a line here: "module:function" of a command with an option ``--out``.
"""

from collections.abc import Mapping

EXPORTS: Mapping[str, str] = {
    "kubernetes": "pdserve.deploy.kubernetes:export",
    "systemd": "pdserve.deploy.systemd:export",
    "paddle-serving": "pdserve.runtimes.paddle_serving.command:export",
}
