"""What the clients take for images."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pdserve.clients import AsyncHttpClient, HttpClient, RpcClient
from tests.running import Server
from tests.tiny import picture

RED = picture((250, 0, 0))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_every_kind(tiny_server: Server, kind: Any) -> None:
    for client in (HttpClient(tiny_server.url), RpcClient(tiny_server.target)):
        with client:
            assert client.predict(kind(RED), 1)[0].label == "red"
            both = client.predict_batch((kind(RED), kind(RED)), 1)
            assert [each[0].label for each in both] == ["red", "red"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("cat.jpg", "An image is of the type str where the bytes .* belong; read the file: Path"),
        (Path("cat.jpg"), r"PosixPath where the bytes .* belong; read the file|WindowsPath"),
        (np.zeros((8, 8, 3), np.uint8), r"numpy.ndarray where .* cv2.imencode"),
        (Image.new("RGB", (8, 8)), r"PIL.Image.Image where .* image.save"),
        (None, "of the type NoneType where"),
        (7, "of the type int where"),
    ],
)
def test_what_is_no_bytes_is_said(image: Any, words: str) -> None:
    for client in (HttpClient("http://127.0.0.1:9"), RpcClient("127.0.0.1:9")):
        with client, pytest.raises(TypeError, match=words):
            client.predict(image)

    async def later() -> None:
        async with AsyncHttpClient("http://127.0.0.1:9") as client:
            await client.predict(image)

    with pytest.raises(TypeError, match=words):
        asyncio.run(later())


@pytest.mark.parametrize("images", [RED, bytearray(RED), "cat.jpg", Path("cat.jpg"), 7, None])
def test_one_image_in_the_place_of_several_is_said(images: Any) -> None:
    with (
        HttpClient("http://127.0.0.1:9") as client,
        pytest.raises(TypeError, match="give a list of image files"),
    ):
        client.predict_batch(images)
