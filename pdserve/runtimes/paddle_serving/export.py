"""``pdserve export paddle-serving``: the folder of a service, to be copied to where Paddle Serving is."""

import threading
from pathlib import Path

from pdserve.errors import UsageError
from pdserve.lock import held
from pdserve.models.home import Home
from pdserve.progress import SILENT
from pdserve.runtimes.paddle_serving import model_folder, refusals, work_folder
from pdserve.runtimes.paddle_serving.refusals import AnySettings
from pdserve.runtimes.paddle_serving.work_folder import WorkFolder
from pdserve.settings import ServerSettings
from pdserve.staging import staged

README = "README.md"


def export(settings: AnySettings, home: Home, folder: Path) -> WorkFolder:
    """Write a folder that stands by itself; it appears when it is complete.

    Raises UsageError where there is something else at ``folder``, and what the settings or the models
    are wrong in.
    """
    notes = refusals.check(settings)
    server = settings.server
    if 0 in (server.http_port, server.rpc_port):
        raise UsageError("A port of 0 means any free one, which only a server can find; give a number.")
    folder = folder.expanduser().absolute()
    ours = (folder / work_folder.SERVICE).is_file()
    if folder.exists() and not ours and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} is there and is no folder of a service; give --out another name.")
    lock = home.root / "exports.lock"
    with held(lock, folder.name, SILENT, threading.Event()), staged(folder) as new:
        ports = server.http_port, server.rpc_port
        made = work_folder.write(settings, home, new, ports, model_folder.copy)
        (new / README).write_text(_readme(made, folder.name, server), "utf-8")
    return WorkFolder(folder, made.kind, made.script, (*notes, *made.notes))


def _readme(made: WorkFolder, name: str, server: ServerSettings) -> str:
    doors = {f"HTTP on {server.http_port} (`POST /{server.name}/prediction`)": server.http_port}
    doors[f"gRPC on {server.rpc_port}"] = server.rpc_port
    answers = " and ".join(door for door, port in doors.items() if port)
    return (
        f"Image {made.kind} for Paddle Serving 0.9.0, as `pdserve export paddle-serving` wrote it.\n"
        f"Start: `docker cp {name} test:/home/{name}`, then in there "
        f"`cd /home/{name} && python3 {made.script}`; it answers {answers}.\n"
        'Settings: config.yml, as Paddle Serving knows it; a GPU is `device_type: 1` and `devices: "0"`.\n'
    )
