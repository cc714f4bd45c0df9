"""Serve real models on real photographs: classification over HTTP and gRPC, then recognition in a gallery.

``make demo`` runs this. It runs pdserve's commands, and lists them at the end. The
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from pdserve import console

OUT = Path(os.path.relpath(Path(__file__).parent / "out"))  # shown in the commands, so short
MODEL = "EfficientNet_lite0"
EMBEDDER = "EfficientNet_lite0_features"
PHOTOS = ("coffee.png", "chelsea.png", "camera.png", "motorcycle_left.png", "rocket.jpg")
# What is in the gallery, by its label; the queries are made of these, but for one that is another photograph.
GALLERY = {
    "astronaut": "astronaut.png",
    "bricks": "brick.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "photographer": "camera.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
}
SECOND_LOOK = ("motorcycle", "motorcycle_right.png")
PDSERVE = str(Path(sys.executable).with_name("pdserve"))
ENVIRONMENT = {**os.environ, "PDSERVE_HOME": str((OUT / "home").absolute()), "PYTHONUTF8": "1"}

typed: list[str] = []


def shown(*arguments: str) -> list[str]:
    """Print a pdserve command and remember it for the end; return it as a list."""
    command = shlex.join(["pdserve", *arguments])
    typed.append(command)
    console.say("")
    console.say(f"$ {command}")
    return [PDSERVE, *arguments]


def run(*arguments: str) -> str:
    """Run a pdserve command; return its standard output. Ends the demo where it fails."""
    done = subprocess.run(shown(*arguments), stdout=subprocess.PIPE, env=ENVIRONMENT, check=False)
    if done.returncode:
        for line in done.stdout.decode("utf-8").splitlines():  # an image's error is said there
            console.say(line)
        sys.exit(f"the command failed with exit code {done.returncode}")
    return done.stdout.decode("utf-8")


def download_photographs(folder: Path) -> None:
    """Extract sample photographs from scikit-image's wheel."""
    wanted = {*PHOTOS, *GALLERY.values(), SECOND_LOOK[1]}
    if all((folder / name).is_file() for name in wanted):
        return
    console.say("Downloading sample photographs (from the package scikit-image)")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-deps", "--only-binary", ":all:", "--dest", str(OUT), "scikit-image"]
    subprocess.run(pip, check=True)
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(next(OUT.glob("scikit_image-*.whl"))) as wheel:
        for name in wanted:
            (folder / name).write_bytes(wheel.read(f"skimage/data/{name}"))


def make_queries(photos: Path, folder: Path) -> dict[Path, str]:
    """Make images to recognize, with the label that each must get: crops, rotations, small JPEGs."""
    folder.mkdir(parents=True, exist_ok=True)
    queries: dict[Path, str] = {}
    for label, name in GALLERY.items():
        with Image.open(photos / name) as opened:
            photo = opened.convert("RGB")
        wide, high = photo.size
        middle = (wide // 5, high // 5, wide - wide // 5, high - high // 5)
        kinds = {
            "crop": photo.crop(middle),
            "turned": photo.rotate(12, Image.Resampling.BICUBIC, expand=False),
            "small": photo.resize((wide // 3, high // 3)),
        }
        for kind, picture in kinds.items():
            path = folder / f"{label}-{kind}.jpg"
            picture.save(path, quality=40)
            queries[path] = label
    again = folder / "motorcycle-seen-from-the-right.png"
    again.write_bytes((photos / SECOND_LOOK[1]).read_bytes())
    return queries | {again: SECOND_LOOK[0]}


def port(preferred: int) -> int:
    """The usual port, or a free one where that is taken."""
    for wanted in (preferred, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                continue
            number: int = probe.getsockname()[1]
            return number
    raise AssertionError("no port is free")


@contextmanager
def served(service: str, usual: tuple[int, int], *options: str) -> Iterator[tuple[list[str], list[str]]]:
    """Run a server; yields the options with which ``predict`` finds it over HTTP, and over gRPC."""
    http_port, rpc_port = port(usual[0]), port(usual[1])
    ports = []
    if (http_port, rpc_port) != usual:
        ports = ["--http-port", str(http_port), "--rpc-port", str(rpc_port)]
    log = OUT / f"{service}.log"
    with log.open("wb") as file:
        server = subprocess.Popen(shown("serve", service, *options, *ports), stderr=file, env=ENVIRONMENT)
    try:
        while not (ready := re.search(r"ready: .*", log.read_text("utf-8"))):
            if server.poll() is not None:
                sys.exit(f"the server did not start:\n{log.read_text('utf-8')}")
            time.sleep(0.05)
        console.say(ready[0])
        at_http = [] if http_port == usual[0] else ["--url", f"http://127.0.0.1:{http_port}"]
        at_rpc = [] if rpc_port == usual[1] else ["--url", f"127.0.0.1:{rpc_port}"]
        yield at_http, at_rpc
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
        console.say("")
        console.say(f"The server stopped with exit code {server.wait(30)}.")
        console.say("")


def answers(output: str, kind: str) -> list[dict[str, Any]]:
    """The best label or object of each line that ``predict --json`` printed."""
    lines = [json.loads(line) for line in output.splitlines()]
    none = {"label": "nothing", "score": 0.0}
    return [(line[kind] or [none])[0] | {"picture": line.get("picture", "")} for line in lines]


def classify(photos: Path) -> None:
    """Classify photographs, over HTTP and gRPC."""
    run("fetch", MODEL)
    run("convert", "--model", MODEL)
    named = [str(photos / name) for name in PHOTOS]
    with served("classification", (18080, 9993), "--model", MODEL) as (at_http, at_rpc):
        pictures = str(OUT / "pictures")
        http = answers(
            run("predict", *named, "--json", "--top-k", "3", "--draw", pictures, *at_http), "labels"
        )
        rpc = answers(run("predict", *named, "--json", "--top-k", "3", "--rpc", *at_rpc), "labels")
    rows = [
        (Path(photo).name, h["label"], h["score"], r["label"], r["score"])
        for photo, h, r in zip(named, http, rpc, strict=True)
    ]
    console.table(("photograph", "over HTTP", "score", "over gRPC", "score"), rows)
    for answer in http:
        console.line(f"picture: {answer['picture']}")


def recognize(photos: Path) -> None:
    """Recognize crops, rotations and re-encoded copies of a gallery's photographs."""
    gallery = OUT / "gallery"
    for label, name in GALLERY.items():
        (gallery / label).mkdir(parents=True, exist_ok=True)
        (gallery / label / name).write_bytes((photos / name).read_bytes())
    queries = make_queries(photos, OUT / "queries")
    run("fetch", EMBEDDER)
    run("convert", "--model", EMBEDDER)
    run("index", "build", "--gallery", str(gallery), "--out", "photographs", "--model", EMBEDDER)
    options = ("--detector", "none", "--embedder", EMBEDDER, "--index", "photographs")
    with served("recognition", (18081, 9994), *options) as (at_http, _):
        found = answers(run("predict", str(OUT / "queries"), "--json", *at_http), "objects")
    rows = [
        (path.name, answer["label"], answer["score"], "yes" if answer["label"] == queries[path] else "NO")
        for path, answer in zip(sorted(queries), found, strict=True)
    ]
    console.table(("query", "recognised as", "similarity", "right?"), rows)
    right = sum(row[3] == "yes" for row in rows)
    console.line(f"{right} of {len(rows)} queries got the right label.")


def main() -> None:
    started = time.monotonic()
    OUT.mkdir(exist_ok=True)
    photos = OUT / "photos"
    download_photographs(photos)
    classify(photos)
    recognize(photos)
    console.line("")
    console.line(f"Done in {time.monotonic() - started:.0f} s. The commands, to go on from here:")
    console.line("")
    console.line(
        f"export PDSERVE_HOME={shlex.quote(str((OUT / 'home').absolute()))} PATH={Path(PDSERVE).parent}:$PATH"
    )
    for command in typed:
        console.line(command)


if __name__ == "__main__":
    main()
