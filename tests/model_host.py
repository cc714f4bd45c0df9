"""A stand-in for the model host: tiny models as archives under the addresses of catalog names."""

import io
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from pdserve.models import catalog
from pdserve.models.catalog import Archive
from tests.file_server import FileServer
from tests.tiny import build_inference_model


def address_path(name: str) -> str:
    """The path of a name's archive on the model host."""
    source = catalog.get(name).source
    assert isinstance(source, Archive)
    return urlsplit(source.url).path


def archive(folder: Path, top: str) -> bytes:
    """A folder as a tar file, under one folder ``top``."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", dereference=True) as tar:
        tar.add(folder, top)
    return out.getvalue()


def tiny_archive(name: str, note: str = "") -> bytes:
    """The tiny classifier as the archive of a name; another ``note`` makes another model of it."""
    with TemporaryDirectory() as folder:
        build_inference_model(Path(folder))
        if note:
            with (Path(folder) / "inference.yml").open("a", encoding="utf-8") as file:
                file.write(f"# {note}\n")
        return archive(Path(folder), f"{name}_infer")


def put_tiny(server: FileServer, *names: str) -> None:
    """Have the server answer with the tiny classifier at the addresses of these names."""
    for name in names:
        server.put(address_path(name), tiny_archive(name))


def put_in_folder(mirror: Path, *names: str) -> None:
    """The same in a folder that is used as a mirror."""
    for name in names:
        path = mirror / address_path(name).lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny_archive(name))
