"""Writers of an index that are killed again and again, against a model of what was acknowledged.

``python -m tests.index.kills FOLDER COUNT [SEED]``: COUNT changes of one index, drawn by SEED, each by a
child that is killed: before a step on the disk that is drawn too, or by SIGKILL after a time that is. A child
says when its change is done. After each death the index must hold all that was acknowledged; a change that
was not must be there as a whole or not at all; the plain names and their labels belong together; and the next
change leaves nothing of the dead one. Prints how many died before and after their change was published.

The children are forked, which is fast, and must not use threads of faiss or of the decoder before.
"""

import asyncio
import hashlib
import io
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pdserve.index import INDEX_TYPES, faiss_index, id_map, store
from pdserve.index.edit import append, append_embedded, build, merge, remove
from pdserve.index.embed import HashedImage
from pdserve.index.gallery import GalleryImage
from pdserve.index.publish import rollback, writer
from pdserve.services.http.gallery import Writers
from pdserve.vision.decode import decode
from tests.index.galleries import GridEmbedder

EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir")
LABELS = ("tea", "cola", "juice")
MOST_STEPS = 60
ROUTE = "the gallery's route"

Model = dict[str, str]
"""Image -> label."""


def draw(number: int) -> bytes:
    """A small JPEG, which is decoded in the calling thread."""
    cells = np.random.default_rng(number).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(cells.repeat(8, 0).repeat(8, 1)).save(out, "JPEG")
    return out.getvalue()


PICTURES = {f"{number}.jpg": draw(number) for number in range(40)}


@dataclass(frozen=True)
class Change:
    """``work`` makes ``after`` of the index."""

    name: str
    after: Model
    work: Callable[[], object]


class Killer:
    """One index, its model, and the model of the version before."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder / "index"
        self.random = random.Random(seed)
        self.embedder = GridEmbedder()
        self.now: Model = dict.fromkeys(list(PICTURES)[:8], "tea")
        self.before: Model | None = None
        build(self.images(self.now), self.folder, self.embedder)
        self.other = folder / "other"
        self.others = dict.fromkeys(list(PICTURES)[30:], "other")
        build(self.images(self.others), self.other, self.embedder)
        self.deaths: Counter[str] = Counter()

    def images(self, model: Model) -> list[GalleryImage]:
        return [GalleryImage(image, label, PICTURES[image]) for image, label in model.items()]

    def drawn(self) -> Model:
        """Some pictures, with labels."""
        some = self.random.sample(sorted(PICTURES), self.random.randint(1, 5))
        return {image: self.random.choice(LABELS) for image in some}

    def change(self) -> Change:
        """One that changes something."""
        while True:
            change = self.any_change()
            if change.after != self.now:
                return change

    def any_change(self) -> Change:
        some, folder = self.drawn(), self.folder
        kind = self.random.choice(sorted(INDEX_TYPES))
        label = self.random.choice([*LABELS, "other"])
        without = {image: each for image, each in self.now.items() if each != label}
        changes = [
            Change("append", self.now | some, lambda: append(self.images(some), folder, self.embedder)),
            Change(ROUTE, self.now | some, lambda: self.upload(some)),
            Change("remove", without, lambda: remove(folder, labels=[label])),
            Change("merge", self.now | self.others, lambda: merge(folder, [self.other])),
            Change("build", some, lambda: build(self.images(some), folder, self.embedder, kind=kind)),
            Change("rollback", self.before or self.now, lambda: rollback(folder)),
        ]
        return self.random.choices(changes, (6, 6, 4, 1, 1, 2))[0]

    def upload(self, some: Model) -> None:
        """As the route does it once the images are embedded."""
        images = [
            HashedImage(GalleryImage(image, label, b""), hashlib.sha256(PICTURES[image]).digest())
            for image, label in some.items()
        ]
        vectors = self.embedder.embed([decode(PICTURES[image]) for image in some])

        async def run() -> None:
            async def nothing() -> None:
                pass

            def work(cancel: threading.Event) -> object:
                return append_embedded(images, vectors, self.folder, self.embedder, cancel=cancel)

            await Writers(nothing).run(work)  # type: ignore[arg-type]

        asyncio.run(run())

    def kill(self) -> None:
        """Begin a change, kill who makes it, and look at what is left."""
        change = self.change()
        acknowledged = self.run_and_kill(change)
        found = self.contents()
        if acknowledged:
            assert found == change.after, f"{change.name} was acknowledged"
        else:
            assert found in (self.now, change.after), f"half of {change.name}"
        self.deaths[f"{change.name}, " + ("acknowledged" if acknowledged else "not")] += 1
        if found != self.now:
            self.before, self.now = self.now, found
        with writer(self.folder):  # whoever writes next repairs the plain names
            labels = id_map.read(self.folder / store.ID_MAP)
            assert dict(map(id_map.split, labels.values())) == self.now
            ids = faiss_index.ids(faiss_index.read(self.folder / store.VECTORS))
            assert set(ids.tolist()) == labels.keys()

    def sweep(self) -> None:
        """A change that nobody kills leaves two versions, and nothing of the dead."""
        image = self.random.choice(sorted(PICTURES))
        label = f"swept {self.random.random()}"
        append(self.images({image: label}), self.folder, self.embedder)
        self.before, self.now = self.now, self.now | {image: label}
        assert self.contents() == self.now
        assert len(store.versions(self.folder)) == 2
        assert not list(self.folder.rglob(".*.tmp"))

    def contents(self) -> Model:
        return dict(map(id_map.split, store.read(self.folder).id_map.values()))

    def run_and_kill(self, change: Change) -> bool:
        """Whether the child said that its change was done, before it died."""
        steps = self.random.randrange(MOST_STEPS) if self.random.random() < 0.7 else None
        delay = self.random.random() * 0.1
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reading)
            try:
                if steps is not None:
                    _die_before(steps, self.folder)
                change.work()
                os.write(writing, b"done")
            except BaseException:
                import traceback

                os.write(writing, traceback.format_exc().encode())
                os._exit(1)
            time.sleep(60)  # until it is killed
            os._exit(0)
        os.close(writing)
        if steps is None:
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read(4)
            if steps is not None and said == b"done":
                os.kill(pid, signal.SIGKILL)
            said += pipe.read()
        os.waitpid(pid, 0)
        assert said in (b"", b"done"), said.decode()
        return said == b"done"


def _die_before(steps: int, folder: Path) -> None:
    """End this process before its step number ``steps`` in a folder."""
    left = steps

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in EVENTS and str(folder) in str(arguments[0]):
            if left == 0:
                os._exit(9)
            left -= 1

    sys.addaudithook(watch)


def run(folder: Path, count: int, seed: int) -> Counter[str]:
    """Kill ``count`` writers; what died how."""
    killer = Killer(folder, seed)
    for number in range(count):
        killer.kill()
        if number % 10 == 9:
            killer.sweep()
    return killer.deaths


if __name__ == "__main__":
    os.fsync = os.fstat  # type: ignore[assignment]  # who is killed loses nothing that is written
    made = run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    for name, number in sorted(made.items()):
        print(f"{name}: {number}")
    print(f"{made.total()} killed")
