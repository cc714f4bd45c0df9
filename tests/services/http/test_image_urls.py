"""Images by address: from listed hosts alone, within bounds, and never from where the name did not mean."""

import asyncio
import base64
import ipaddress
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from pdserve.answers import Label, Labels
from pdserve.errors import BodyTooLargeError, PdserveError, SettingsError
from pdserve.services.budget import STEP, Entrance
from pdserve.services.http import image_urls
from pdserve.services.http.app import build_app
from pdserve.services.http.bodies import RESERVATIONS, release
from pdserve.services.http.image_urls import AddressError, ImageFetcher, is_public
from pdserve.services.telemetry.metrics import Metrics
from pdserve.settings import ServerSettings
from tests.services.watching import FakeService, served

LOOPBACK = "127.0.0.1"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nimage"


def entrance(*hosts: str, **settings: Any) -> Entrance:
    return Entrance(ServerSettings(name="imagenet", allow_image_urls=hosts, **settings))


class Files:
    """A host on the loopback that answers each request with what stands at its path, as it is."""

    def __init__(self, answers: dict[str, bytes | None]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self._tasks.add(asyncio.ensure_future(self.answer(reader, writer)))

    async def close(self) -> None:
        """Leave no connection behind, whatever the other side does."""
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(each.wait_closed() for each in self._writers), return_exceptions=True)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(head)
        answer = self.answers[head.split()[1]]
        if answer is None:
            await reader.read()  # until the caller has enough of it
        else:
            writer.write(answer.replace(b"PORT", str(self.port).encode()))
        writer.close()


@asynccontextmanager
async def host(**answers: bytes | None) -> AsyncIterator[Files]:
    files = Files({f"/{name}": answer for name, answer in answers.items()})
    server = await asyncio.start_server(files.accept, LOOPBACK, 0)
    files.port = server.sockets[0].getsockname()[1]
    async with server:
        try:
            yield files
        finally:
            await files.close()


def says(*addresses: str) -> tuple[Callable[[str, int], Any], list[str]]:
    """A look-up that gives these addresses, one each time it is asked, and whom it was asked for."""
    asked: list[str] = []

    async def look_up(name: str, port: int) -> Sequence[str]:
        asked.append(name)
        return [addresses[min(len(asked), len(addresses)) - 1]]

    return look_up, asked


async def refused(fetcher: ImageFetcher, url: str) -> str:
    with pytest.raises(PdserveError) as caught:
        await fetcher.fetch(url, {})
    return caught.value.message


def test_a_listed_host_is_asked_by_its_name_at_the_address_that_was_judged() -> None:
    async def main() -> None:
        async with host(image=OK) as files:
            look_up, asked = says(LOOPBACK)
            listed = entrance(f"images.example:{files.port}", LOOPBACK)
            scope: dict[str, Any] = {}
            url = f"http://Images.Example:{files.port}/image#part"
            assert await ImageFetcher(listed, look_up).fetch(url, scope) == b"image"
            assert asked == ["images.example"]
            (head,) = files.asked
            assert f"Host: images.example:{files.port}\r\n" in head
            assert "Accept-Encoding: identity" in head
            (reservation,) = scope[RESERVATIONS]
            assert reservation.amount == 5
            release(scope)
            assert reservation.amount == 0

    asyncio.run(main())


def test_what_is_not_listed_is_not_even_looked_up() -> None:
    async def main() -> None:
        look_up, asked = says("192.0.2.1")
        fetcher = ImageFetcher(entrance("images.example", "other.example:8080"), look_up)
        for url in (
            "http://elsewhere.example/a",
            "http://images.example.elsewhere.example/a",
            "http://images.example:8080/a",
            "http://other.example/a",
            "http://images.example./a",
            f"http://{LOOPBACK}/a",
            "http://2130706433/a",
            "http://[::1]/a",
            "http://[::ffff:127.0.0.1]/a",
        ):
            assert "This server fetches nothing from" in await refused(fetcher, url)
        for url in (
            "http://images.example@elsewhere.example/a",
            "http://me:secret@images.example/a",
            "http:///a",
            "http://images.example/" + "a" * 2048,
        ):
            assert "send the file in base64" in await refused(fetcher, url)
        nothing = await refused(ImageFetcher(entrance(), look_up), "http://images.example/a")
        assert nothing.startswith("The image is an address, and this server fetches nothing")
        assert asked == []

    asyncio.run(main())


def test_a_name_that_means_a_private_address_reaches_it_only_where_that_is_listed() -> None:
    async def main() -> None:
        async with host(image=OK) as files:
            name = f"images.example:{files.port}"
            for address in (
                LOOPBACK,
                "10.0.0.1",
                "169.254.169.254",
                "::1",
                "fe80::1%eth0",
                "::ffff:127.0.0.1",
            ):
                text = await refused(ImageFetcher(entrance(name), says(address)[0]), f"http://{name}/image")
                assert "is a private one, whose own address is not listed" in text
            assert files.asked == []

    asyncio.run(main())


def test_a_name_that_means_another_address_the_second_time_is_judged_again() -> None:
    """DNS rebinding: what is judged is what is connected to, and a redirect is judged anew."""

    async def main() -> None:
        again = b"HTTP/1.1 302 Found\r\nLocation: /image\r\nContent-Length: 0\r\n\r\n"
        async with host(image=OK, again=again) as files:
            name = f"images.example:{files.port}"
            look_up, asked = says(LOOPBACK, "10.0.0.1")
            listed = entrance(name, LOOPBACK)
            assert await ImageFetcher(listed, look_up).fetch(f"http://{name}/image", {}) == b"image"
            assert len(asked) == 1
            look_up, asked = says(LOOPBACK, "10.0.0.1")
            text = await refused(ImageFetcher(listed, look_up), f"http://{name}/again")
            assert "is a private one" in text
            assert len(asked) == 2

    asyncio.run(main())


def test_redirects() -> None:
    def to(place: str) -> bytes:
        return f"HTTP/1.1 307 Temporary\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()

    async def main() -> None:
        async with host(
            image=OK,
            near=to("/image"),
            far=to("http://localhost:PORT/image"),
            unlisted=to("http://elsewhere.example/image"),
            file=to("file:///etc/hostname"),
            round=to("/round"),
        ) as files:
            own = f"http://{LOOPBACK}:{files.port}"
            fetcher = ImageFetcher(entrance(f"{LOOPBACK}:{files.port}", f"localhost:{files.port}"))
            assert await fetcher.fetch(f"{own}/near", {}) == b"image"
            assert "leads to another one" in await refused(fetcher, f"{own}/far")
            assert "This server fetches nothing from" in await refused(fetcher, f"{own}/unlisted")
            assert "An image's address is http://" in await refused(fetcher, f"{own}/file")
            before = len(files.asked)
            assert "leads on more than 3 times" in await refused(fetcher, f"{own}/round")
            assert len(files.asked) - before == 4

    asyncio.run(main())


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        head = b"HTTP/1.1 200 OK\r\n"
        async with host(
            image=OK,
            none=b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            packed=head + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nimage",
            endless=head + b"\r\n" + b"a" * (3 * STEP),
            cut=head + b"Content-Length: 9\r\n\r\nimage",
            noise=b"noise\r\n\r\n",
            silent=None,
        ) as files:
            own = f"http://{LOOPBACK}:{files.port}"
            fetcher = ImageFetcher(entrance(f"{LOOPBACK}:{files.port}", max_body_bytes=2 * STEP))
            assert "answers 404" in await refused(fetcher, f"{own}/none")
            assert "something compressed" in await refused(fetcher, f"{own}/packed")
            with pytest.raises(BodyTooLargeError, match=f"more than {2 * STEP} bytes"):
                await fetcher.fetch(f"{own}/endless", {})
            assert "cannot be fetched" in await refused(fetcher, f"{own}/cut")
            assert "cannot be fetched" in await refused(fetcher, f"{own}/noise")
            monkeypatch.setattr(image_urls, "TIMEOUT_S", 0.3)
            with pytest.raises(AddressError, match=r"did not come from its address within 0\.3 s"):
                await fetcher.fetch(f"{own}/silent", {})

    asyncio.run(main())


@pytest.mark.parametrize("wrong", ["", "http://a", "a/b", "*", "*.example", "a:b", "a:0", "a:70000", "a b"])
def test_a_host_that_is_none(wrong: str) -> None:
    with pytest.raises(SettingsError, match="it must be a host"):
        ImageFetcher(entrance(wrong))


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("0.0.0.0", False),
        ("100.64.0.1", False),
        ("192.168.1.1", False),
        ("224.0.0.1", False),
        ("::", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b::8.8.8.8", True),
        ("2002:0a00:0001::1", False),
    ],
)
def test_public_addresses(text: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(text)) == public


class Reader(FakeService):
    """Answers an image with its bytes as a label."""

    async def _answer(self, images: Sequence[Any]) -> list[Any]:
        return [Labels((Label(0, image.decode(), 1.0),)) for image in images]


def test_over_http() -> None:
    """A fetched image is answered as one in base64 is."""

    async def main() -> list[Any]:
        async with host(image=OK) as files:
            metrics = Metrics()
            settings = ServerSettings(name="imagenet", allow_image_urls=(f"{LOOPBACK}:{files.port}",))
            app = build_app(Reader(metrics), settings, metrics)
            answers: list[Any] = []

            def ask() -> None:
                with served(app) as url, httpx.Client(base_url=url, trust_env=False) as client:
                    for image in (
                        f"http://{LOOPBACK}:{files.port}/image",
                        base64.b64encode(b"image").decode(),
                        f"http://localhost:{files.port}/image",
                    ):
                        answers.append(client.post("/image-classification", json={"image": image}).json())

            await asyncio.to_thread(ask)
            assert len(files.asked) == 1
            return answers

    fetched, sent, other = asyncio.run(main())
    assert fetched["result"] == sent["result"] == {"categories": [{"id": 0, "name": "image", "score": 1.0}]}
    assert other["errorCode"] == 400
