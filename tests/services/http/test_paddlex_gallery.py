"""PaddleX's galleries: keys, changes and searches on real indexes; what is done better; who may change."""

import asyncio
import base64
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from starlette.requests import Request
from starlette.responses import Response

from pdserve.answers import Objects
from pdserve.errors import ImageError
from pdserve.index.store import version_folder
from pdserve.pipelines.parameters import USUAL, Parameters
from pdserve.pipelines.recognition import every
from pdserve.pipelines.regions import Region
from pdserve.services.budget import Entrance
from pdserve.services.http import paddlex_gallery
from pdserve.services.http.browsers import OtherSiteError, WriteHeaderError
from pdserve.services.http.paddlex import routes
from pdserve.services.http.paddlex_gallery import Galleries, check_may_write
from pdserve.services.protocols import Context
from pdserve.services.service import Service
from pdserve.services.telemetry.metrics import Metrics
from pdserve.settings import ServerSettings
from pdserve.vision.boxes import Box

WORDS = ("red", "green", "blue", "grey")
NO_KEY = "There is no gallery with the indexKey"


class Words(Service):
    """A service whose images are words, or several with a "+": each has a direction of its own."""

    kind = "recognition"
    names = frozenset({"recognition"})
    loaded = True  # type: ignore[assignment]

    def __init__(self, fingerprint: str = "one", writes: bool = True) -> None:
        self.options = SimpleNamespace(gallery_writes=writes)
        pipeline = SimpleNamespace(models={}, config=None)
        self._embedder = SimpleNamespace(
            name="words", fingerprint=fingerprint, dimension=len(WORDS), path=None
        )
        self._replica = SimpleNamespace(pipeline=pipeline)

    @property
    def replica(self) -> Any:
        return self._replica

    async def awake(self) -> None:
        pass

    @property
    def embedder(self) -> Any:
        return self._embedder

    async def embed(self, images: Any, timeout_s: float | None = None) -> Any:
        await asyncio.sleep(0)
        return [_vector(image) for image in images]

    async def answer(
        self,
        images: Sequence[Any],
        top_k: int | None = None,
        timeout_s: float | None = None,
        parameters: Parameters = USUAL,
    ) -> list[Any]:
        if parameters.index is None:
            return [Objects(())]
        assert parameters.least_similarity is not None
        assert top_k
        near = parameters.index.search(np.stack([_vector(image) for image in images]), top_k)
        region = Region(Box(1, 2, 30, 40, 0.75), True)
        return [Objects(every([region], [each], parameters.least_similarity)) for each in near]


def _vector(image: bytes) -> Any:
    words = image.decode().split("+")
    if not set(words) <= set(WORDS):
        return ImageError("no image")
    vector = np.array([float(each in words) for each in WORDS], np.float32)
    return vector / np.linalg.norm(vector)


class Server:
    """The routes of a service, called as the server would."""

    def __init__(self, service: Service, **settings: Any) -> None:
        made = ServerSettings(name="recognition", **settings)
        self.routes = {route.path: route for route in routes(Context(service, Entrance(made), Metrics()))}

    async def ask(self, path: str, **body: Any) -> Any:
        """The answer's content; with "status" for one that failed."""
        response = await self.respond(path, body, {"content-type": "application/json"})
        content = json.loads(response.body)
        assert content["errorCode"] == (0 if response.status_code == 200 else response.status_code)
        assert content["logId"]
        return content["result"] if response.status_code == 200 else content

    async def respond(self, path: str, body: Any, headers: dict[str, str]) -> Response:
        sent = [json.dumps(body).encode()]

        async def receive() -> Any:
            if sent:
                return {"type": "http.request", "body": sent.pop(), "more_body": False}
            await asyncio.Event().wait()
            raise AssertionError("nobody sets it")

        named = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": path, "headers": named, "query_string": b""}
        return await self.routes[path].endpoint(Request(scope, receive))

    async def build(self, *words: str) -> str:
        result = await self.ask("/shitu-index-build", imageLabelPairs=pairs(*words))
        assert result == {"indexKey": result["indexKey"], "imageCount": len(words)}
        return str(uuid.UUID(result["indexKey"]))

    async def found(self, key: str, word: str, **more: Any) -> list[str]:
        """The labels that are found for a word."""
        result = await self.ask("/shitu-infer", image=encoded(word), indexKey=key, visualize=False, **more)
        (one,) = result["detectedObjects"]
        assert (one["bbox"], one["score"]) == ([1, 2, 30, 40], 0.75)
        return [each["label"] for each in one["recResults"]]


def encoded(word: str) -> str:
    return base64.b64encode(word.encode()).decode()


def pairs(*words: str) -> list[dict[str, str]]:
    return [{"image": encoded(word), "label": f"it is {word}"} for word in words]


@pytest.fixture
def indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PDSERVE_HOME", str(tmp_path))
    return tmp_path / "indexes"


def test_a_gallery_is_built_changed_and_searched(indexes: Path) -> None:
    async def main() -> None:
        server = Server(Words())
        key = await server.build("red", "green")
        assert (indexes / key / "index.json").is_file()  # an index of pdserve's own, as any other
        assert await server.found(key, "red") == ["it is red", "it is green"]
        assert (await server.found(key, "blue+red"))[0] == "it is red"
        assert await server.found(key, "blue") == []
        # topk is what PaddleX takes and ignores.
        assert [len(await server.found(key, "red", topk=n)) for n in (1, 2, 9)] == [1, 2, 2]
        assert await server.found(key, "blue+red", recThreshold=0.75) == []
        assert await server.found(key, "blue", recThreshold=-1, topk=1) != []
        # The same picture again is another entry, and ids are in order, as PaddleX's.
        add = "/shitu-index-add"
        assert await server.ask(add, indexKey=key, imageLabelPairs=pairs("red", "blue")) == {"imageCount": 4}
        remove = "/shitu-index-remove"
        assert await server.ask(remove, indexKey=key, ids=[0, 99, -1]) == {"imageCount": 3}
        assert await server.ask(remove, indexKey=key, ids=[0]) == {"imageCount": 3}
        assert await server.found(key, "red", topk=1) == ["it is red"]
        assert await server.ask(remove, indexKey=key, ids=[2]) == {"imageCount": 2}
        assert await server.found(key, "red") == []
        assert await server.found(key, "blue", topk=1) == ["it is blue"]

    asyncio.run(main())


def test_adds_at_once_lose_none(indexes: Path) -> None:
    """PaddleX reads the whole index, changes it and writes it: the last writer takes the others' away."""

    async def main() -> None:
        server = Server(Words())
        key = await server.build("red")
        adds = (
            server.ask("/shitu-index-add", indexKey=key, imageLabelPairs=pairs(WORDS[i % 4]))
            for i in range(12)
        )
        counts = [each["imageCount"] for each in await asyncio.gather(*adds)]
        assert sorted(counts) == list(range(2, 14))

    asyncio.run(main())


def test_an_index_is_not_read_again_for_each_request(indexes: Path) -> None:
    """PaddleX reads and unpickles it for each; here what is on the disk could be anything meanwhile."""

    async def main() -> None:
        server = Server(Words())
        key = await server.build("red", "green")
        assert await server.found(key, "red", topk=1) == ["it is red"]
        vectors = version_folder(indexes / key, 1) / "vector.index"
        whole = vectors.read_bytes()
        vectors.write_bytes(b"nothing")
        assert await server.found(key, "green", topk=1) == ["it is green"]
        vectors.write_bytes(whole)
        await server.ask("/shitu-index-add", indexKey=key, imageLabelPairs=pairs("blue"))
        assert await server.found(key, "blue", topk=1) == ["it is blue"]  # read again, as it has changed

    asyncio.run(main())


def test_few_are_kept_in_memory(indexes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        server, galleries = Server(Words()), Galleries()
        keys = [await server.build("red", "green") for _ in range(3)]
        monkeypatch.setattr(paddlex_gallery, "_KEPT_BYTES", 2 * 2 * len(WORDS) * 4)
        loaded = [await galleries.get(key, Words()) for key in keys]
        again = [await galleries.get(key, Words()) for key in (keys[2], keys[1], keys[0])]
        assert [again[0] is loaded[2], again[1] is loaded[1], again[2] is loaded[0]] == [True, True, False]

    asyncio.run(main())


def test_a_key_names_no_path_and_nothing_of_another(indexes: Path) -> None:
    async def main() -> None:
        server = Server(Words())
        key = await server.build("red")
        stranger = str(uuid.uuid4())
        (indexes / stranger).write_bytes(b"\x80\x04N.")  # where PaddleX would unpickle
        (indexes / "colors").mkdir()
        (indexes / "colors" / "index.json").write_bytes((indexes / key / "index.json").read_bytes())
        for wrong in (
            stranger, "colors", "", ".", "..", f"../indexes/{key}", f"{key}/", f"./{key}", key.upper(),
            str(indexes / key), f"{key}\0", key.replace("-", ""), "a" * 5000,
        ):  # fmt: skip
            for path, more in (
                ("infer", {"image": encoded("red")}),
                ("index-add", {"imageLabelPairs": pairs("red")}),
                ("index-remove", {"ids": [0]}),
            ):
                answer = await server.ask(f"/shitu-{path}", indexKey=wrong, **more)
                assert (answer["errorCode"], answer["errorMsg"][: len(NO_KEY)]) == (404, NO_KEY)
        other = Server(Words("two"))
        for path, more in (
            ("infer", {"image": encoded("red")}),
            ("index-add", {"imageLabelPairs": pairs("red")}),
        ):
            answer = await other.ask(f"/shitu-{path}", indexKey=key, **more)
            assert answer["errorCode"] == 404
            assert "was built with another embedder" in answer["errorMsg"]
        assert await server.found(key, "red") == ["it is red"]

    asyncio.run(main())


def test_what_cannot_be_done(indexes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        server = Server(Words(), max_images=5)
        key = await server.build("red")
        build, add, remove = (f"/shitu-index-{name}" for name in ("build", "add", "remove"))
        for path, body, status, text in (
            (build, {}, 422, '[{"type": "missing", "loc": "body.imageLabelPairs"'),
            (
                build,
                {"imageLabelPairs": [{"image": 1}, 3]},
                422,
                '[{"type": "string_type", "loc": "body.image',
            ),
            (build, {"imageLabelPairs": []}, 400, "imageLabelPairs is empty"),
            (build, {"imageLabelPairs": pairs(*["red"] * 6)}, 413, "The request has 6 images"),
            (build, {"imageLabelPairs": pairs("red", "rot")}, 400, "imageLabelPairs[1].image: no image"),
            (build, {"imageLabelPairs": [{"image": "***", "label": "a"}]}, 400, "The image is not base64."),
            (
                build,
                {"imageLabelPairs": [{"image": "cmVk", "label": " "}]},
                400,
                "imageLabelPairs[0].label is empty",
            ),
            (
                build,
                {"imageLabelPairs": [{"image": "cmVk", "label": "a" * 5000}]},
                400,
                "imageLabelPairs[0].label is longer than 4096 bytes",
            ),
            (
                build,
                {"imageLabelPairs": [{"image": "http://a/b", "label": "a"}]},
                400,
                "The image is an address",
            ),
            (add, {"imageLabelPairs": pairs("red")}, 422, '[{"type": "missing", "loc": "body.indexKey"'),
            (remove, {"indexKey": key, "ids": ["a"]}, 422, '[{"type": "int_parsing", "loc": "body.ids[0]"'),
            (remove, {"indexKey": key, "ids": list(range(1001))}, 400, "1001 ids are more than 1000"),
            (remove, {"indexKey": key, "ids": ["a"] * 2001}, 413, "ids has 2001 entries, more than 2000"),
            (build, {"imageLabelPairs": [{}] * 2001}, 413, "imageLabelPairs has 2001 entries"),
            (
                "/shitu-infer",
                {"image": "cmVk", "topk": 0},
                422,
                '[{"type": "greater_than", "loc": "body.topk"',
            ),
        ):
            answer = await server.ask(path, **body)
            assert answer["errorCode"] == status, answer
            assert answer["errorMsg"].startswith(text), answer
        assert len(list(indexes.iterdir())) == 1  # what failed has left nothing

        monkeypatch.setattr(Galleries.__init__, "__defaults__", (None, 2, 3))
        server = Server(Words())
        many = await server.ask(add, indexKey=key, imageLabelPairs=pairs("red", "red", "red"))
        assert "would have 4 images, and may have 3" in many["errorMsg"]
        assert await server.build("red", "red", "red")
        full = await server.ask(build, imageLabelPairs=pairs("red"))
        assert (full["errorCode"], full["errorMsg"][:22]) == (400, "There are 2 galleries,")

    asyncio.run(main())


def test_writes_are_off_unless_asked_for(indexes: Path) -> None:
    async def main() -> None:
        server = Server(Words(writes=False))
        for name in ("build", "add", "remove"):
            answer = await server.ask(f"/shitu-index-{name}")
            assert (answer["errorCode"], "--gallery-writes" in answer["errorMsg"]) == (403, True)
        assert not indexes.exists()

    asyncio.run(main())


def test_a_body_that_a_page_could_send_is_none(indexes: Path) -> None:
    """What a browser sends for another site without asking first: a form, text, or no type at all."""

    async def main() -> None:
        server = Server(Words())
        body = {"imageLabelPairs": pairs("red")}
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            response = await server.respond("/shitu-index-build", body, {"content-type": kind})
            assert response.status_code == 422
        json_type = {"content-type": "application/json"}
        for more in ({"origin": "https://elsewhere.example"}, {"sec-fetch-site": "cross-site"}):
            response = await server.respond("/shitu-index-build", body, json_type | more)
            assert response.status_code == 403
        assert not indexes.exists()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("settings", "headers", "allowed"),
    [
        ({}, {}, True),
        ({"host": "localhost"}, {}, True),
        ({"host": "0.0.0.0"}, {}, False),
        ({"host": "192.0.2.7"}, {}, False),
        ({"host": "0.0.0.0"}, {"x-pdserve-write": "1"}, True),
        ({"host": "0.0.0.0", "api_key": "k" * 16}, {}, True),
        ({}, {"x-forwarded-for": "192.0.2.7"}, False),
        ({}, {"forwarded": "for=192.0.2.7"}, False),
    ],
)
def test_who_may_change(settings: dict[str, Any], headers: dict[str, str], allowed: bool) -> None:
    scope = {"headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    made = ServerSettings(name="recognition", **settings)
    if allowed:
        check_may_write(scope, made)
    else:
        with pytest.raises(WriteHeaderError, match="where other machines reach the server"):
            check_may_write(scope, made)
    with pytest.raises(OtherSiteError):
        check_may_write({"headers": [*scope["headers"], (b"origin", b"https://elsewhere.example")]}, made)
