"""Request bodies: read with a limit before anything is parsed, then taken apart by their type."""

import base64
import binascii
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from pdserve.errors import BodyTooLargeError, ImageError, PdserveError, RequestError


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises BodyTooLargeError as soon as more than ``limit`` bytes are announced or come."""
    too_large = BodyTooLargeError(
        f"The body is larger than the limit of {limit} bytes; send less at once or raise max_body_bytes."
    )
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


async def read_images(request: Request, body: bytes, max_images: int) -> list[bytes | PdserveError]:
    """The images of a /v1 request, in order, by the body's type. Raises RequestError."""
    kind = media_type(request)
    if kind == "multipart/form-data":
        files, _ = await read_form(request, body, max_images)
        return list(files)
    if kind == "application/json":
        images = json_object(body, wanted := '{"images": [base64, …]}').get("images")
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
            raise RequestError(f"The body must be a JSON object {wanted}.")
        if not images:
            raise RequestError("The list of images is empty.")
        return [from_base64(image) for image in images]
    if not body:
        raise ImageError("The body is empty; send an image file.")
    return [body]


def media_type(request: Request) -> str:
    """The Content-Type without its parameters, in small letters; empty where there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_form(
    request: Request, body: bytes, max_images: int
) -> tuple[Sequence[bytes], dict[str, list[str]]]:
    """A multipart form's files in the field ``images``, at least one, and its text fields.

    Raises RequestError.
    """

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = MultiPartParser(
            request.headers, stream(), max_files=max_images + 1, max_fields=max_images + 16
        )
        form = await parser.parse()
    except (MultiPartException, HTTPException, KeyError, ValueError) as error:
        raise RequestError(f"The multipart form cannot be read: {error}.") from error
    try:
        files = [part for part in form.getlist("images") if isinstance(part, UploadFile)]
        if not files:
            raise RequestError("The form has no file in a field called images.")
        fields: dict[str, list[str]] = {}
        for name, value in form.multi_items():
            if isinstance(value, str):
                fields.setdefault(name, []).append(value)
        return [await file.read() for file in files], fields
    finally:
        await form.close()


def json_object(body: bytes, wanted: str) -> dict[str, Any]:
    """A JSON object; ``wanted`` shows its form in the error. Raises RequestError."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is no JSON; send {wanted}.") from error
    if not isinstance(content, dict):
        raise RequestError(f"The body must be a JSON object {wanted}.")
    return content


def from_base64(text: str) -> bytes | PdserveError:
    """A base64 string, or a ``data:`` URL of one; an ImageError where it is neither."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            return ImageError("The data: URL is not base64.")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return ImageError("The image is not base64.")
