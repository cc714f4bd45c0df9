"""Writes the folders beside it, as `pdserve export` writes them for a service with its defaults:
``python deploy/write.py``.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pdserve.deploy import kubernetes, systemd
from pdserve.deploy.bundle import Bundle
from pdserve.pipelines import SERVICES

FOLDER = Path(__file__).parent


def texts() -> Mapping[str, str]:
    """Every file by its path in this folder."""
    entry = SERVICES["classification"]
    settings = entry.settings({}, {})
    models = {role: (None, each.model) for role, each in settings.models.items()}
    plain = Bundle("pdserve-classification", entry, settings, models)
    written = {"kubernetes": kubernetes.texts(plain), "systemd": systemd.texts(plain)}
    return {f"{folder}/{name}": text for folder, files in written.items() for name, text in files.items()}


if __name__ == "__main__":
    for name, text in texts().items():
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).write_text(text, "utf-8", newline="\n")
