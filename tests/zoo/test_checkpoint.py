"""The checkpoint reader against files written here opcode by opcode, honest and hostile."""

import random
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pdserve.errors import ModelError
from pdserve_zoo.checkpoint import MAX_BYTES, MAX_OPCODES, read_checkpoint


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def items(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def pickled(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


ORDERED_DICT = name("collections", "OrderedDict") + b")R"
REBUILD = name("torch._utils", "_rebuild_tensor_v2")
HEAD = (
    pickled(number(119547037146038801333356))
    + pickled(number(1001))
    + pickled(b"}(" + text("little_endian") + b"\x88u")
)


def storage(key: str, count: int, kind: str = "FloatStorage", module: str = "torch") -> bytes:
    return items(text("storage"), name(module, kind), text(key), text("cpu"), number(count), b"N") + b"Q"


def tensor(stored: bytes, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    shape, steps = (items(*map(number, values)) for values in (size, stride))
    return REBUILD + items(stored, number(offset), shape, steps, b"\x89", ORDERED_DICT) + b"R"


def state_dict(entries: Mapping[str, bytes]) -> bytes:
    """A state dict with the ``_metadata`` that PyTorch hangs on it."""
    pairs = b"".join(text(key) + value for key, value in entries.items())
    metadata = b"}(" + text("_metadata") + ORDERED_DICT + b"u"
    return pickled(ORDERED_DICT + b"(" + pairs + b"u" + metadata + b"b")


def keys(*names: str) -> bytes:
    return pickled(b"](" + b"".join(map(text, names)) + b"e")


def elements(array: NDArray[Any]) -> bytes:
    return struct.pack("<q", array.size) + array.tobytes()


def checkpoint_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """A checkpoint of float32 and int64 arrays, each in its own storage."""
    entries = {}
    for key, array in arrays.items():
        kind = {"float32": "FloatStorage", "int64": "LongStorage"}[array.dtype.name]
        stride = tuple(step // array.itemsize for step in np.empty(array.shape, array.dtype).strides)
        entries[key] = tensor(storage(key, array.size, kind), array.shape, stride)
    # PyTorch sorts the storages by their keys, whatever the order of the tensors.
    order = sorted(arrays)
    return HEAD + state_dict(entries) + keys(*order) + b"".join(elements(arrays[key]) for key in order)


def one_tensor(value: bytes, data: NDArray[Any] | None = None) -> bytes:
    """A checkpoint with one entry ``w`` in the storage ``k`` of six floats."""
    data = np.arange(6, dtype="<f4") if data is None else data
    return HEAD + state_dict({"w": value}) + keys("k") + elements(data)


def write(folder: Path, data: bytes) -> Path:
    path = folder / "model.pth"
    path.write_bytes(data)
    return path


def test_reads_names_types_shapes_and_values_in_order(tmp_path: Path) -> None:
    arrays = {
        "z.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "b": np.array(-7, np.int64),
        "a.bias": np.array([0.5], np.float32),
    }
    read = read_checkpoint(write(tmp_path, checkpoint_bytes(arrays)))
    assert list(read) == ["z.weight", "b", "a.bias"]
    for key, array in arrays.items():
        assert read[key].dtype == array.dtype
        np.testing.assert_array_equal(read[key], array)


def test_reads_transposed_and_shared_storages(tmp_path: Path) -> None:
    shared = storage("k", 6)
    state = state_dict({"whole": tensor(shared, (3, 2), (1, 3)), "row": tensor(shared, (3,), (1,), 3)})
    data = HEAD + state + keys("k") + elements(np.arange(6, dtype="<f4"))
    read = read_checkpoint(write(tmp_path, data))
    np.testing.assert_array_equal(read["whole"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(read["row"], [3, 4, 5])


def test_arrays_are_read_only(tmp_path: Path) -> None:
    read = read_checkpoint(write(tmp_path, checkpoint_bytes({"w": np.ones(3, np.float32)})))
    with pytest.raises(ValueError, match="read-only"):
        read["w"][0] = 2


@pytest.mark.parametrize(
    ("module", "attribute"),
    [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "__import__"),
     ("collections", "namedtuple"), ("torch", "HalfStorage"), ("torch._utils", "_rebuild_parameter")],
)  # fmt: skip
@pytest.mark.parametrize("place", ["magic", "state", "entry", "keys"])
def test_refuses_any_other_global_by_name_and_runs_nothing(
    tmp_path: Path, module: str, attribute: str, place: str
) -> None:
    canary = tmp_path / "canary"
    call = name(module, attribute) + items(text(f"touch {canary}")) + b"R"
    data = {
        "magic": pickled(call),
        "state": HEAD + pickled(call),
        "entry": one_tensor(call),
        "keys": HEAD + state_dict({}) + pickled(call),
    }[place]
    with pytest.raises(ModelError, match=f"{module}.{attribute}".replace(".", r"\.")):
        read_checkpoint(write(tmp_path, data))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        pytest.param((7,), (1,), 0, id="too long"),
        pytest.param((6,), (1,), 1, id="offset too far"),
        pytest.param((2, 3), (4, 1), 0, id="stride too wide"),
        pytest.param((6,), (1,), -1, id="negative offset"),
        pytest.param((6,), (-1,), 5, id="negative stride"),
        pytest.param((-6,), (1,), 0, id="negative size"),
        pytest.param((0,), (1,), 0, id="empty"),
        pytest.param((1 << 40,), (0,), 0, id="one element a million million times"),
        pytest.param((1 << 32, 1 << 32), (0, 0), 0, id="more than 64 bits"),
        pytest.param((1,), (1 << 70,), 0, id="stride beyond 64 bits"),
        pytest.param((6,), (), 0, id="strides missing"),
        pytest.param((1,) * 9, (1,) * 9, 0, id="nine dimensions"),
    ],
)
def test_refuses_a_tensor_that_leaves_its_storage(
    tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    data = one_tensor(tensor(storage("k", 6), size, stride, offset))
    with pytest.raises(ModelError, match="'w'"):
        read_checkpoint(write(tmp_path, data))


GOOD = tensor(storage("k", 6), (6,), (1,))
SIX = np.arange(6, dtype="<f4")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "truncated", id="empty"),
        pytest.param(b"PK\x03\x04" + bytes(60), "zip layout", id="newer layout"),
        pytest.param(pickled(number(42)) + one_tensor(GOOD), "magic number", id="magic"),
        pytest.param(HEAD.replace(b"\x88u", b"\x89u") + one_tensor(GOOD), "little-endian", id="endian"),
        pytest.param(HEAD + pickled(b"]") + keys(), "list|state dict", id="no dict"),
        pytest.param(HEAD + state_dict({"w": number(1)}) + keys(), "'w' that is no tensor", id="no tensor"),
        pytest.param(one_tensor(GOOD) + b"\0", "after its last storage", id="goes on"),
        pytest.param(one_tensor(GOOD, SIX[:5]), "two sizes", id="storage shorter than stated"),
        pytest.param(one_tensor(GOOD)[:-1], "truncated", id="last byte missing"),
        pytest.param(
            HEAD + state_dict({"w": GOOD}) + keys("other") + elements(SIX), "other storages", id="other key"
        ),
        pytest.param(
            HEAD + state_dict({"w": GOOD}) + keys("k", "k") + elements(SIX) * 2, "other storages", id="twice"
        ),
        pytest.param(
            HEAD
            + state_dict({"w": GOOD, "v": tensor(storage("k", 6, "LongStorage"), (6,), (1,))})
            + keys("k")
            + elements(SIX),
            "two types or sizes",
            id="two types",
        ),
        pytest.param(one_tensor(tensor(storage("k", -1), (6,), (1,))), "two sizes", id="negative count"),
        pytest.param(
            HEAD
            + state_dict({"w": tensor(storage("k", 1 << 62), (6,), (1,))})
            + keys("k")
            + struct.pack("<q", 1 << 62),
            "truncated",
            id="exabytes announced",
        ),
        pytest.param(one_tensor(tensor(number(1), (6,), (1,))), "arguments", id="a number for a storage"),
        pytest.param(one_tensor(REBUILD + b")R"), "arguments", id="no arguments"),
        pytest.param(
            one_tensor(items(text("module"), ORDERED_DICT) + b"Q"), "refers to a storage", id="other id"
        ),
        pytest.param(b"\x80\x04N.", "protocol 4", id="protocol"),
        pytest.param(pickled(b"N\x81"), "opcode .*x81", id="opcode"),
        pytest.param(pickled(b"h\x05"), "altered", id="memo never put"),
        pytest.param(b"cos\nsyst", "altered|os.syst", id="half a global"),
        pytest.param(pickled(b"X\x01\0\0\0\xff"), "altered", id="no UTF-8"),
        pytest.param(pickled(b"0"), "opcode b'0'", id="pop"),
        pytest.param(pickled(b"R"), "altered", id="empty stack"),
        pytest.param(pickled(b"NN"), "altered", id="two values"),
        pytest.param(pickled(b"NR"), "altered", id="half a call"),
    ],
)
def test_refuses_what_is_altered(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_checkpoint(write(tmp_path, data))


@pytest.mark.full
@pytest.mark.parametrize(
    "bomb",
    [
        pytest.param(b"Nr\xff\xff\xff\xff", id="memo index of 4 billion"),
        pytest.param(b"})" + b"\x85" * 500_000 + b"Ns", id="key of half a million nested tuples"),
        pytest.param(b"})" + b"q\0h\0\x86" * 100 + b"Ns", id="key that takes 2**100 steps to hash"),
        pytest.param(b"N" * (MAX_OPCODES + 1), id="too many opcodes"),
        pytest.param(b"X\xff\xff\xff\xff", id="string of 4 GB"),
    ],
)
@pytest.mark.timeout(60)
def test_refuses_bombs_quickly(tmp_path: Path, bomb: bytes) -> None:
    with pytest.raises(ModelError):
        read_checkpoint(write(tmp_path, pickled(bomb)))


def test_refuses_a_file_beyond_the_limit(tmp_path: Path) -> None:
    path = write(tmp_path, b"")
    with path.open("r+b") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ModelError, match="limit"):
        read_checkpoint(path)


def test_a_missing_file_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read_checkpoint(tmp_path / "nothing.pth")


@pytest.mark.full
def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = checkpoint_bytes({"w": np.ones((2, 3), np.float32), "n": np.array(1, np.int64)})
    for end in range(len(data)):
        with pytest.raises(ModelError):
            read_checkpoint(write(tmp_path, data[:end]))


@pytest.mark.full
def test_random_changes_are_read_or_refused_but_never_crash(tmp_path: Path) -> None:
    data = checkpoint_bytes({"w": np.ones((2, 3), np.float32), "n": np.array(1, np.int64)})
    chance = random.Random(0)
    refused = 0
    for _ in range(3000):
        changed = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(data))] = chance.randrange(256)
        try:
            for array in read_checkpoint(write(tmp_path, bytes(changed))).values():
                array.sum()
        except ModelError:
            refused += 1
    assert refused > 1000
