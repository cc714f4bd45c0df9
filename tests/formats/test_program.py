"""Reading programs: Paddle's own exports, its predictor's words, and files that mean harm."""

import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from pdserve.errors import ModelError
from pdserve.formats.model_files import MAX_PROGRAM_BYTES, ModelFiles, find_model_files, read_program
from pdserve.formats.parameters import check_parameters
from pdserve.formats.pir import parse_pir
from pdserve.formats.program import TensorSpec
from pdserve.formats.protos import message
from tests.conftest import DATA

PROGRAMS = DATA / "programs"
PDMODEL = PROGRAMS / "two_heads/pdmodel"
PIR = PROGRAMS / "two_heads/pir"
SEPARATE = PROGRAMS / "two_heads/separate"


@pytest.mark.parametrize("model", ["two_heads/pdmodel/inference.pdmodel", "two_heads/pir/inference.json"])
def test_names_are_those_of_paddles_predictor(model: str) -> None:
    said = json.loads((PROGRAMS / "expected.json").read_text())[model]
    signature = read_program(find_model_files((PROGRAMS / model).parent)).signature
    assert [f.name for f in signature.feeds] == said["feeds"]
    assert [f.name for f in signature.fetches] == said["fetches"]


def test_a_model_exported_both_ways_has_one_signature() -> None:
    old, new = (read_program(find_model_files(folder)) for folder in (PDMODEL, PIR))
    assert old.signature.feeds == new.signature.feeds
    assert old.signature.feeds == (
        TensorSpec("x", "float32", (-1, 3, 8, 8)),
        TensorSpec("scale", "float32", (-1, 1)),
    )
    both = [[(f.dtype, f.shape) for f in p.signature.fetches] for p in (old, new)]
    assert both[0] == both[1] == [("float32", (-1, 5)), ("int64", (-1, 2))]
    assert old.parameters == new.parameters
    assert len(old.parameters) == 8


def test_feeds_and_fetches_go_by_column_and_not_by_place() -> None:
    signature = read_program(find_model_files(PROGRAMS / "odd")).signature
    assert signature.feeds == (
        TensorSpec("mask", "bool", (2, -1, 3)),
        TensorSpec("words", "int64", (-1, 1), lod_level=1),
    )
    assert [f.name for f in signature.fetches] == ["softmax_0.tmp_0", "cast_1.tmp_0", "cast_0.tmp_0"]
    document = json.loads((PIR / "inference.json").read_bytes())
    document["program"]["regions"][0]["blocks"][0]["ops"].reverse()
    turned = parse_pir(json.dumps(document).encode(), "turned")
    assert [f.name for f in turned.signature.fetches] == ["fetch_name_0", "fetch_name_1"]


def test_operators_of_both_formats() -> None:
    assert read_program(find_model_files(PDMODEL)).operators == {
        "batch_norm", "conv2d", "elementwise_add", "elementwise_mul", "matmul_v2", "reduce_mean", "reshape2",
        "scale", "softmax", "top_k_v2",
    }  # fmt: skip
    assert read_program(find_model_files(PIR)).operators == {
        "add", "batch_norm_", "conv2d", "full", "full_int_array", "matmul", "mean", "multiply", "reshape",
        "scale", "softmax", "topk",
    }  # fmt: skip
    assert {"if", "tanh", "relu"} <= read_program(find_model_files(PROGRAMS / "branches")).operators


def test_pir_without_parameters_and_with_older_keys() -> None:
    files = find_model_files(PROGRAMS / "branches")
    assert files == ModelFiles(PROGRAMS / "branches/inference.json", None, "PIR")
    program = read_program(files)
    assert program.parameters == ()
    check_parameters(files, program)
    assert [f.dtype for f in program.signature.feeds] == ["float64", "bool"]
    text = (PROGRAMS / "branches/inference.json").read_text()
    spelt_out = text.replace('"1.', '"pd_op.').replace('"0.', '"builtin.')
    assert parse_pir(spelt_out.encode(), "spelt out") == program


MODEL, PARAMS, JSON = "pdmodel/inference.pdmodel", "pdmodel/inference.pdiparams", "pir/inference.json"


@pytest.mark.parametrize(
    ("held", "model", "params", "kind"),
    [
        ({"inference.pdmodel": MODEL, "inference.pdiparams": PARAMS}, 0, 1, "ProgramDesc"),
        ({"inference.json": JSON, "inference.pdiparams": PARAMS}, 0, 1, "PIR"),
        ({"ResNet.pdmodel": MODEL, "ResNet.pdiparams": PARAMS}, 0, 1, "ProgramDesc"),
        ({"model.pdmodel": MODEL, "params.pdiparams": PARAMS}, 0, 1, "ProgramDesc"),
        ({"v5.json": JSON, "weights.pdiparams": PARAMS}, 0, 1, "PIR"),
        ({"__model__": MODEL, "__params__": PARAMS}, 0, 1, "ProgramDesc"),
        ({"model": MODEL, "params": PARAMS}, 0, 1, "ProgramDesc"),
        # One model in both formats: the one that more engines read.
        ({"a.pdmodel": MODEL, "a.json": JSON, "a.pdiparams": PARAMS}, 0, 2, "ProgramDesc"),
        (
            {"inference.pdmodel": MODEL, "inference.pdiparams": PARAMS, "int8.pdmodel": MODEL},
            0,
            1,
            "ProgramDesc",
        ),
    ],
)
def test_names_that_are_found(
    tmp_path: Path, held: dict[str, str], model: int, params: int, kind: str
) -> None:
    for name, source in held.items():
        shutil.copyfile(PROGRAMS / "two_heads" / source, tmp_path / name)
    for other in (
        "pdserve.json",
        "inference.yml",
        "serving_server_conf.prototxt",
        "inference.pdiparams.info",
    ):
        (tmp_path / other).write_text('{"name": "two heads"}')
    listed = list(held)
    files = find_model_files(tmp_path)
    assert files == ModelFiles(tmp_path / listed[model], tmp_path / listed[params], kind)  # type: ignore[arg-type]
    check_parameters(files, read_program(files))


def test_one_file_per_parameter(tmp_path: Path) -> None:
    files = find_model_files(SEPARATE)
    assert files == ModelFiles(SEPARATE / "__model__", None, "ProgramDesc")
    check_parameters(files, read_program(files))
    shutil.copytree(SEPARATE, tmp_path / "pir")
    (tmp_path / "pir/__model__").unlink()
    shutil.copyfile(PIR / "inference.json", tmp_path / "pir/__model__.json")
    assert find_model_files(tmp_path / "pir").kind == "PIR"
    (tmp_path / "pir/linear_0.b_0").unlink()
    with pytest.raises(ModelError, match=r"not its parameters.*linear_0\.b_0.*it holds __model__\.json"):
        find_model_files(tmp_path / "pir")


def test_given_names_win_and_wrong_ones_list_what_is_there(tmp_path: Path) -> None:
    for name, source in {"a.bin": MODEL, "b.bin": PARAMS, "c": JSON}.items():
        shutil.copyfile(PROGRAMS / "two_heads" / source, tmp_path / name)
    assert find_model_files(tmp_path, "a.bin", "b.bin").kind == "ProgramDesc"
    assert find_model_files(tmp_path, "c", "b.bin").kind == "PIR"
    with pytest.raises(ModelError, match=r"no file 'model\.pdmodel'; it holds a\.bin, b\.bin, c\."):
        find_model_files(tmp_path, "model.pdmodel")
    with pytest.raises(ModelError, match=r"no file 'w'; it holds a\.bin"):
        find_model_files(tmp_path, "a.bin", "w")
    with pytest.raises(ModelError, match=r"no file 'x{300}'"):
        find_model_files(tmp_path, "x" * 300)
    with pytest.raises(ModelError, match=r"has no model; it holds a\.bin.*--model-filename"):
        find_model_files(tmp_path)


def test_what_is_no_model_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no model folder"):
        find_model_files(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="it holds no files"):
        find_model_files(tmp_path)
    (tmp_path / "pdserve.json").write_text('{"name": "x"}')
    with pytest.raises(ModelError, match="has no model"):
        find_model_files(tmp_path)
    for name in ("a", "b"):
        shutil.copyfile(PDMODEL / "inference.pdmodel", tmp_path / f"{name}.pdmodel")
    with pytest.raises(ModelError, match=r"several models \(a\.pdmodel, b\.pdmodel\)"):
        find_model_files(tmp_path)
    for name in ("p", "q"):
        shutil.copyfile(PDMODEL / "inference.pdiparams", tmp_path / f"{name}.pdiparams")
    with pytest.raises(ModelError, match=r"several parameter files \(p\.pdiparams, q\.pdiparams\)"):
        find_model_files(tmp_path, "a.pdmodel")


def test_parameters_that_do_not_fit(tmp_path: Path) -> None:
    whole = (PDMODEL / "inference.pdiparams").read_bytes()
    program = read_program(find_model_files(PDMODEL))
    files = ModelFiles(PDMODEL / "inference.pdmodel", tmp_path / "inference.pdiparams", "ProgramDesc")

    def refused(data: bytes, match: str) -> None:
        (tmp_path / "inference.pdiparams").write_bytes(data)
        with pytest.raises(ModelError, match=match):
            check_parameters(files, program)

    for length in range(len(whole)):
        refused(whole[:length], r"does not hold the parameters of inference\.pdmodel")
    refused(whole[:-1], r"ends inside 'linear_0\.w_0'")
    refused(b"", r"ends before 'batch_norm2d_0\.b_0'")
    refused(whole + b"\0", "1 bytes follow the last parameter")
    refused(b"<!doctype html>" + whole, "no tensor where 'batch_norm2d_0.b_0' should begin")
    first = (SEPARATE / "linear_0.b_0").read_bytes()
    refused(first + whole, r"'batch_norm2d_0.b_0' is \(5,\) and should be \(4,\)")
    (tmp_path / "inference.pdiparams").unlink()
    with pytest.raises(ModelError, match="Cannot read"):
        check_parameters(files, program)


def test_parameters_with_lod_are_skipped_too(tmp_path: Path) -> None:
    bias = (SEPARATE / "linear_0.b_0").read_bytes()
    with_lod = bias[:4] + struct.pack("<QQ", 1, 16) + bytes(16) + bias[12:]
    shutil.copytree(SEPARATE, tmp_path / "model")
    (tmp_path / "model/linear_0.b_0").write_bytes(with_lod)
    files = find_model_files(tmp_path / "model")
    check_parameters(files, read_program(files))
    (tmp_path / "model/linear_0.b_0").write_bytes(bias[:4] + struct.pack("<QQ", 1, 2**63) + bias[12:])
    with pytest.raises(ModelError, match=r"ends inside 'linear_0\.b_0'"):
        check_parameters(files, read_program(files))


def program_desc() -> Any:
    return message("pdserve.program.ProgramDesc").FromString((PDMODEL / "inference.pdmodel").read_bytes())


def read_bytes(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    read_program(ModelFiles(folder / name, None, "PIR" if name.endswith(".json") else "ProgramDesc"))


@pytest.mark.parametrize("outside", ["../stolen", "/etc/passwd", "a/../../b", "..\\b", "C:\\b", "C:b"])
def test_a_parameter_is_no_way_out_of_the_folder(tmp_path: Path, outside: str) -> None:
    program = program_desc()
    next(v for v in program.blocks[0].vars if v.name == "linear_0.b_0").name = outside
    (tmp_path / "__model__").write_bytes(program.SerializeToString())
    with pytest.raises(ModelError, match="outside its folder"):
        find_model_files(tmp_path)


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31mred", "a\0b"])
def test_names_that_would_spoil_a_terminal_or_a_file(tmp_path: Path, name: str) -> None:
    program = program_desc()
    for variable in program.blocks[0].vars:
        if variable.name == "x":
            variable.name = name
    for op in program.blocks[0].ops:
        for slot in (*op.inputs, *op.outputs):
            slot.arguments[:] = [name if a == "x" else a for a in slot.arguments]
    with pytest.raises(ModelError, match="has the name"):
        read_bytes(tmp_path, "m.pdmodel", program.SerializeToString())
    text = (PIR / "inference.json").read_text().replace('"D":"x"', '"D":' + json.dumps(name))
    with pytest.raises(ModelError, match="has the name"):
        read_bytes(tmp_path, "m.json", text.encode())


def test_broken_files_are_model_errors(tmp_path: Path) -> None:
    hollow = (b"", b"{", b"null", b"[]", b"{}", b'{"base_code": {"magic": "onnx"}}', b"\xff\xfe")
    deep = (b"9" * 5000, b"[" * 100_000, b'{"a":' * 100_000)
    cases = {
        "m.pdmodel": (b"", b"\0", b"not a model at all", b"\x0a\x00", b"version https://git-lfs"),
        "m.json": hollow + deep,
    }
    for name, contents in cases.items():
        for data in contents:
            with pytest.raises(ModelError, match=r"m\.(pdmodel|json) is"):
                read_bytes(tmp_path, name, data)


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pdmodel"
    with path.open("wb") as file:
        file.truncate(MAX_PROGRAM_BYTES + 1)
    with pytest.raises(ModelError, match="larger than 32 MiB"):
        read_program(ModelFiles(path, None, "ProgramDesc"))
    with pytest.raises(ModelError, match="larger than 8 MiB"):
        read_program(ModelFiles(path, None, "PIR"))


@pytest.mark.parametrize(
    ("fetches", "parameters", "words"),
    [
        (1001, 0, "has more than 1000 fetches: it is no model of images"),
        (1, 20_001, "has more than 20000 parameters: it is no model of images"),
    ],
)
def test_absurd_numbers_are_refused(tmp_path: Path, fetches: int, parameters: int, words: str) -> None:
    tensor = {"TT": {"#": "0.t_dtensor", "D": [{"#": "0.t_f32"}, [1], "NCHW", [], 0]}}

    def op(kind: str, **attributes: object) -> dict[str, object]:
        named = [{"N": name, "AT": {"D": value}} for name, value in attributes.items()]
        return {"#": kind, "O": [tensor], "A": named}

    ops: list[object] = [op("1.data", name="x")]
    ops += [op("1.fetch", name=f"fetch_name_{i}", col=i) for i in range(fetches)]
    ops += [{"#": "p", "O": tensor, "A": [0, 0, 0, f"w{i}"]} for i in range(parameters)]
    program = {"regions": [{"blocks": [{"ops": ops}]}]}
    path = tmp_path / "inference.json"
    path.write_text(json.dumps({"base_code": {"magic": "pir"}, "program": program}), "utf-8")
    with pytest.raises(ModelError, match=words):
        read_program(ModelFiles(path, None, "PIR"))


def test_a_program_that_feeds_or_fetches_nothing(tmp_path: Path) -> None:
    for kind in ("feed", "fetch"):
        program = program_desc()
        kept = [op for op in program.blocks[0].ops if op.type != kind]
        del program.blocks[0].ops[:]
        program.blocks[0].ops.extend(kept)
        with pytest.raises(ModelError, match=f"has no {kind}"):
            read_bytes(tmp_path, "m.pdmodel", program.SerializeToString())
    text = (PIR / "inference.json").read_text().replace('"1.fetch"', '"1.print"')
    with pytest.raises(ModelError, match="has no fetches"):
        read_bytes(tmp_path, "m.json", text.encode())


def test_tensors_that_cannot_be_served(tmp_path: Path) -> None:
    text = (PIR / "inference.json").read_text()
    for old, new, match in (
        ('"0.t_i64"},[-1,2]', '"0.t_f8e4m3fn"},[-1,2]', "f8e4m3fn"),
        ("[-1,3,8,8],", "[-1,3,8,99999999999],", "shape"),
        ("[-1,3,8,8],", "[-1,3.5,8,8],", "shape"),
        ("[-1,3,8,8],", "[-1" + ",1" * 40 + "],", "shape"),
        ("0.t_dtensor", "0.t_vec", "kind"),
        ('"N":"col"', '"N":"row"', "'col'"),
    ):
        assert old in text
        with pytest.raises(ModelError, match=match):
            read_bytes(tmp_path, "m.json", text.replace(old, new).encode())


def mutated(data: bytes, seed: int) -> bytes:
    """The data cut short, with bits or bytes changed, or with a piece put elsewhere."""
    chance = random.Random(seed)
    kind = chance.randrange(4)
    if kind == 0:
        return data[: chance.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(chance.choice((1, 2, 8, 50))):
        at = chance.randrange(len(changed))
        if kind == 1:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            changed[at] = chance.randrange(256)
        else:
            other, length = chance.randrange(len(changed)), chance.randrange(40)
            changed[at : at + length] = changed[other : other + length]
    return bytes(changed)


@pytest.mark.full
@pytest.mark.parametrize(
    "model",
    ["two_heads/pdmodel/inference.pdmodel", "odd/inference.pdmodel", "two_heads/pir/inference.json",
     "branches/inference.json"],
)  # fmt: skip
def test_no_damage_gives_anything_but_a_model_error(tmp_path: Path, model: str) -> None:
    data = (PROGRAMS / model).read_bytes()
    refused = 0
    for seed in range(1500):
        try:
            read_bytes(tmp_path, Path(model).name, mutated(data, seed))
        except ModelError:
            refused += 1
    assert 500 < refused < 1500  # most damage shows; some is where we do not look


@pytest.mark.full
def test_no_damage_to_parameters_gives_anything_but_a_model_error(tmp_path: Path) -> None:
    data = (PDMODEL / "inference.pdiparams").read_bytes()
    program = read_program(find_model_files(PDMODEL))
    path = tmp_path / "inference.pdiparams"
    refused = 0
    for seed in range(1000):
        path.write_bytes(mutated(data, seed))
        try:
            check_parameters(ModelFiles(PDMODEL / "inference.pdmodel", path, "ProgramDesc"), program)
        except ModelError:
            refused += 1
    assert 250 < refused < 1000
