"""Images and bodies that are small or well formed and cost much: what `attacks.py` and `soak.py` send.

Only for servers of one's own.
"""

import base64
import io
import struct
import zlib

from PIL import Image

from pdserve.formats.protos import pipeline


def form(parts: list[tuple[str, str | None, bytes]]) -> tuple[bytes, dict[str, str]]:
    """A form of (name, file name, content), and the header that goes with it."""
    out = bytearray()
    for name, filename, content in parts:
        named = f'; filename="{filename}"' if filename is not None else ""
        out += f'--hostile\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode()
        out += content + b"\r\n"
    return bytes(out) + b"--hostile--\r\n", {"Content-Type": "multipart/form-data; boundary=hostile"}


def images_form(images: list[bytes]) -> tuple[bytes, dict[str, str]]:
    """A form of images."""
    return form([("images", f"{number}", image) for number, image in enumerate(images)])


def photo(side: int = 224) -> bytes:
    """An ordinary JPEG, red, of some structure."""
    small = Image.linear_gradient("L").resize((16, 16))
    red = Image.merge(
        "RGB", (Image.new("L", (16, 16), 255), small.point(lambda p: p // 8), Image.new("L", (16, 16)))
    )
    out = io.BytesIO()
    red.resize((side, side)).save(out, "JPEG", quality=90)
    return out.getvalue()


def flat(side: int, form_at: str = "WEBP") -> bytes:
    """A picture of one colour of side × side pixels: WEBP (lossless) or JPEG2000; few kB."""
    out = io.BytesIO()
    Image.new("RGB", (side, side)).save(out, form_at, **({"lossless": True} if form_at == "WEBP" else {}))
    return out.getvalue()


def two_sizes_tiff(width: int, height: int, small: int = 10, rows: int = 512) -> bytes:
    """A TIFF of two sizes: each tag comes twice, first with type SLONG8 (17), which some readers pass over.

    Who reads SLONG8 finds width × height pixels, deflated; who passes it over finds small × small raw ones.
    """
    strips = -(-height // rows)
    deflated = zlib.compress(bytes(width * 3 * rows), 9)
    raw = bytes(small * small * 3)
    count = 15
    head = 8 + 2 + 12 * count + 4
    blob = bytearray()

    def put(content: bytes) -> int:
        blob.extend(bytes(-(head + len(blob)) % 8))
        at = head + len(blob)
        blob.extend(content)
        return at

    def long8(*values: int) -> int:
        return put(struct.pack(f"<{len(values)}q", *values))

    bits, raw_at, deflated_at = put(struct.pack("<3H", 8, 8, 8)), put(raw), put(deflated)
    tags = [
        (256, 17, 1, long8(width)), (256, 4, 1, small),
        (257, 17, 1, long8(height)), (257, 4, 1, small),
        (258, 3, 3, bits),
        (259, 17, 1, long8(8)), (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 17, strips, long8(*[deflated_at] * strips)), (273, 4, 1, raw_at),
        (277, 3, 1, 3),
        (278, 17, 1, long8(rows)), (278, 4, 1, small),
        (279, 17, strips, long8(*[len(deflated)] * strips)), (279, 4, 1, len(raw)),
    ]  # fmt: skip
    out = b"II*\0" + struct.pack("<IH", 8, count)
    for each in tags:
        out += struct.pack("<HHII", *each)
    return out + struct.pack("<I", 0) + bytes(blob)


def many_scans(side: int, scans: int) -> bytes:
    """A grey progressive JPEG of many scans, each of which says that nothing is there; ITU-T T.81, G.1.2."""
    tiny = io.BytesIO()
    Image.new("L", (16, 16), 128).save(tiny, "JPEG", quality=50)
    source = tiny.getvalue()
    at = source.index(b"\xff\xdb")
    tables = source[at : at + 2 + int.from_bytes(source[at + 2 : at + 4], "big")]

    def huffman(kind: int, symbol: int) -> bytes:
        content = bytes([kind << 4, 1, *[0] * 15, symbol])
        return b"\xff\xc4" + struct.pack(">H", 2 + len(content)) + content

    def stuffed(bits: str) -> bytes:
        bits += "1" * (-len(bits) % 8)
        return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")

    def scan(first: int, last: int, content: bytes) -> bytes:
        return b"\xff\xda" + struct.pack(">HB", 8, 1) + bytes([1, 0, first, last, 0]) + content

    blocks = (-(-side // 8)) ** 2
    nothing = stuffed(("0" + "1" * 14) * -(-blocks // 32767))  # runs of 32767 blocks
    out = b"\xff\xd8" + tables + b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, side, side, 1) + b"\1\x11\0"
    out += huffman(0, 0) + huffman(1, 0xE0) + scan(0, 0, stuffed("0" * blocks))
    for number in range(scans):
        out += scan(1 + number % 63, 1 + number % 63, nothing)
    return out + b"\xff\xd9"


def long_comment(length: int) -> bytes:
    """A PPM of one pixel after a comment of so many bytes."""
    return b"P6 #" + b"a" * length + b"\n1 1 255\nabc"


def high_rank(rank: int) -> str:
    """A body of the pipeline protocol with a tensor of so many dimensions."""
    return '{"tensors":[{"name":"x","elem_type":1,"shape":[' + ",".join(["2147483647"] * rank) + "]}]}"


def high_rank_message(rank: int) -> bytes:
    """The same for gRPC."""
    request = pipeline.request_class()()
    tensor = request.tensors.add()
    tensor.name, tensor.elem_type = "x", 1
    tensor.shape.extend([2**31 - 1] * rank)
    return bytes(request.SerializeToString())


def many_tensors(count: int) -> str:
    """A body with so many small tensors."""
    return (
        '{"tensors":[' + ",".join(['{"name":"x","elem_type":1,"shape":[1],"float_data":[1]}'] * count) + "]}"
    )


def many_numbers(count: int) -> str:
    """A body with a tensor of so many numbers."""
    return '{"tensors":[{"name":"x","elem_type":1,"float_data":[' + ",".join(["1"] * count) + "]}]}"


def many_images(count: int) -> str:
    """A body of /v1 with so many images, none of which is one."""
    return '{"images":[' + ",".join(['"a"'] * count) + "]}"


def many_keys(count: int) -> str:
    """A body of the pipeline protocol with so many keys of one name."""
    return '{"key":[' + ",".join(['"i"'] * count) + '],"value":[' + ",".join(['"QQ=="'] * count) + "]}"


def many_names(count: int) -> str:
    """A JSON object with so many names."""
    return "{" + ",".join(f'"k{number}":1' for number in range(count)) + "}"


def large_message(length: int) -> bytes:
    """A message of gRPC with a value of so many equal characters, which gzip makes small."""
    return bytes(pipeline.request_class()(key=["image"], value=["A" * length]).SerializeToString())


def base64_text(image: bytes) -> str:
    return base64.b64encode(image).decode()
