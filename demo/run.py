"""Fetch a real ImageNet model, serve it, classify real photographs over HTTP and gRPC, stop.

``make demo`` runs this. All it does is type pdserve's commands, and in the end it shows them. The
photographs are some that the scikit-image package ships; pip brings them.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from pdserve import console

OUT = Path(__file__).parent / "out"
MODEL = "EfficientNet_lite0"
PHOTOS = ("coffee.png", "chelsea.png", "camera.png", "motorcycle_left.png", "rocket.jpg")
PDSERVE = str(Path(sys.executable).with_name("pdserve"))
ENVIRONMENT = {**os.environ, "PDSERVE_HOME": str(OUT / "home"), "PYTHONUTF8": "1"}

typed: list[str] = []


def shown(*arguments: str) -> list[str]:
    """Say a pdserve command and keep it for the end; the command as a list."""
    command = shlex.join(["pdserve", *arguments])
    typed.append(command)
    console.say(f"\n$ {command}")
    return [PDSERVE, *arguments]


def run(*arguments: str) -> str:
    """Run a pdserve command to its end; its standard output. Ends the demo where it fails."""
    done = subprocess.run(shown(*arguments), stdout=subprocess.PIPE, env=ENVIRONMENT, check=False)
    if done.returncode:
        sys.exit(f"the command failed with exit code {done.returncode}")
    return done.stdout.decode("utf-8")


def bring_photographs(folder: Path) -> list[str]:
    """Sample photographs out of scikit-image's wheel."""
    if not all((folder / name).is_file() for name in PHOTOS):
        console.say("Bringing sample photographs (from the package scikit-image)")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        pip += ["--no-deps", "--only-binary", ":all:", "--dest", str(OUT), "scikit-image"]
        subprocess.run(pip, check=True)
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(next(OUT.glob("scikit_image-*.whl"))) as wheel:
            for name in PHOTOS:
                (folder / name).write_bytes(wheel.read(f"skimage/data/{name}"))
    return [str(folder / name) for name in PHOTOS]


def port(preferred: int) -> int:
    """The usual port, or any free one where it is taken."""
    for wanted in (preferred, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                continue
            number: int = probe.getsockname()[1]
            return number
    raise AssertionError("no port is free")


def start(http_port: int, rpc_port: int) -> "subprocess.Popen[bytes]":
    """Start the server; back when it says that it is ready."""
    options = ["serve", "classification", "--model", MODEL]
    if (http_port, rpc_port) != (18080, 9993):
        options += ["--http-port", str(http_port), "--rpc-port", str(rpc_port)]
    log = OUT / "server.log"
    with log.open("wb") as file:
        server = subprocess.Popen(shown(*options), stderr=file, env=ENVIRONMENT)
    while server.poll() is None:
        if found := re.search(r"ready: .*", log.read_text("utf-8")):
            console.say(found[0])
            return server
        time.sleep(0.05)
    sys.exit(f"the server did not start:\n{log.read_text('utf-8')}")


def answers(output: str) -> list[dict[str, object]]:
    """The best label of each line that ``predict --json`` printed."""
    lines = [json.loads(line) for line in output.splitlines()]
    return [line["labels"][0] | {"picture": line.get("picture", "")} for line in lines]


def main() -> None:
    begun = time.monotonic()
    OUT.mkdir(exist_ok=True)
    photos = bring_photographs(OUT / "photos")
    run("fetch", MODEL)
    run("convert", "--model", MODEL)
    http_port, rpc_port = port(18080), port(9993)
    server = start(http_port, rpc_port)
    try:
        at_http = [] if http_port == 18080 else ["--url", f"http://127.0.0.1:{http_port}"]
        at_rpc = [] if rpc_port == 9993 else ["--url", f"127.0.0.1:{rpc_port}"]
        pictures = str(OUT / "pictures")
        http = answers(run("predict", *photos, "--json", "--top-k", "3", "--draw", pictures, *at_http))
        rpc = answers(run("predict", *photos, "--json", "--top-k", "3", "--rpc", *at_rpc))
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(30)
    console.say(f"\nThe server stopped with exit code {code}.\n")
    rows = [
        (Path(photo).name, h["label"], h["score"], r["label"], r["score"])
        for photo, h, r in zip(photos, http, rpc, strict=True)
    ]
    console.table(("photograph", "over HTTP", "score", "over gRPC", "score"), rows)
    for answer in http:
        console.line(f"picture: {answer['picture']}")
    console.line(f"\nDone in {time.monotonic() - begun:.0f} s. The commands, to go on from here:\n")
    console.line(f"export PDSERVE_HOME={shlex.quote(str(OUT / 'home'))} PATH={Path(PDSERVE).parent}:$PATH")
    for command in typed:
        console.line(command)


if __name__ == "__main__":
    main()
