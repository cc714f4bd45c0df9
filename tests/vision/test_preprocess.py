import json
import math

import cv2
import numpy as np
import pytest
from PIL import Image

from pdserve.errors import ImageError, SettingsError
from pdserve.models import catalog
from pdserve.vision import preprocess
from pdserve.vision.decode import decode
from tests.conftest import GOLDEN
from tests.fuzz.guard import outcome

# The three chains of the published services, by the names in preprocess.json.
NORMALIZE = {
    "NormalizeImage": {"scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
}
CHAINS = {
    "classification": [{"ResizeImage": {"resize_short": 256}}, {"CropImage": {"size": 224}}, NORMALIZE],
    "recognition": [{"ResizeImage": {"size": 224}}, NORMALIZE],
    "detection": [NORMALIZE, {"ResizeImage": {"size": 640}}],
}
REFERENCE = json.loads((GOLDEN / "preprocess.json").read_text("utf-8"))
TRANSFORMED = [entry.name for entry in catalog.load().values() if entry.transforms is not None]


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * height).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_the_reference_has_all_images_and_chains():
    assert set(REFERENCE) == {path.name for path in (GOLDEN / "images").iterdir()}
    assert len(REFERENCE) == 11
    assert all(set(chains) == set(CHAINS) for chains in REFERENCE.values())


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("name", REFERENCE)
def test_golden_tensors(name, chain):
    """What the published Paddle Serving readers make of the same files."""
    expected = REFERENCE[name][chain]
    tensor = preprocess.build(CHAINS[chain])(decode((GOLDEN / "images" / name).read_bytes()))
    assert list(tensor.shape) == expected["shape"]
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    assert tensor.mean(dtype=np.float64) == pytest.approx(expected["mean"], abs=1e-5)
    assert np.abs(tensor.ravel()[expected["index"]] - np.array(expected["value"])).max() < 1e-4


@pytest.mark.parametrize("name", TRANSFORMED)
def test_every_chain_of_the_catalog_runs(name):
    chain = preprocess.build(catalog.get(name).transforms)
    assert chain.size is not None
    tensor = chain(noise(97, 61))
    assert tensor.shape == (3, *chain.size)
    assert np.isfinite(tensor).all()


def test_short_side_is_resized_as_published():
    """Python's rounding, half to even, of both sides."""
    chain = preprocess.build([{"ResizeImage": {"resize_short": 5}}])
    assert chain.size is None
    assert chain(noise(30, 20)).shape == (3, 5, 8)  # 7.5
    assert chain(noise(20, 30)).shape == (3, 8, 5)
    assert chain(noise(26, 20)).shape == (3, 5, 6)  # 6.5


def test_size_is_width_and_height():
    chain = preprocess.build([{"ResizeImage": {"size": [30, 20]}}])
    assert chain.size == (20, 30)
    assert chain(noise(7, 9)).shape == (3, 20, 30)


def test_short_side_comes_before_size():
    chain = preprocess.build([{"ResizeImage": {"resize_short": 5, "size": [30, 20]}}])
    assert chain(noise(10, 10)).shape == (3, 5, 5)


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "area", "lanczos", None])
def test_opencv_interpolations(name):
    flag = {
        "nearest": cv2.INTER_NEAREST,
        "bicubic": cv2.INTER_CUBIC,
        "area": cv2.INTER_AREA,
        "lanczos": cv2.INTER_LANCZOS4,
    }.get(name, cv2.INTER_LINEAR)
    image = noise(64, 48)
    out = preprocess.build([{"ResizeImage": {"size": [20, 10], "interpolation": name}}])(image)
    assert (out == np.moveaxis(cv2.resize(image, (20, 10), interpolation=flag), 2, 0)).all()
    number = preprocess.build([{"ResizeImage": {"size": [20, 10], "interpolation": flag}}])(image)
    assert (number == out).all()


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "box", "lanczos", "hamming"])
def test_pillow_interpolations(name):
    image = noise(64, 48)
    resample = Image.Resampling[name.upper()]
    expected = np.moveaxis(np.asarray(Image.fromarray(image).resize((20, 10), resample)), 2, 0)
    for given in (name, int(resample)):
        op = {"ResizeImage": {"size": [20, 10], "interpolation": given, "backend": "PIL"}}
        assert (preprocess.build([op])(image) == expected).all()


def test_the_back_ends_differ_in_bicubic():
    image = noise(64, 48)
    out = {
        backend: preprocess.build(
            [{"ResizeImage": {"size": [20, 10], "interpolation": "bicubic", "backend": backend}}]
        )(image)
        for backend in ("cv2", "pil")
    }
    assert np.abs(out["cv2"] - out["pil"]).mean() > 10


def test_crop_is_of_the_centre():
    image = noise(11, 8)
    assert (
        preprocess.build([{"CropImage": {"size": [4, 3]}}])(image) == image[2:5, 3:7].transpose(2, 0, 1)
    ).all()
    assert preprocess.build([{"CropImage": {"size": 4}}]).size == (4, 4)


def test_crop_of_a_small_image():
    with pytest.raises(ImageError, match=r"11×8, too small for a crop of 9×9"):
        preprocess.build([{"CropImage": {"size": 9}}])(noise(11, 8))


def test_normalising():
    image = noise(5, 4)
    op = {"NormalizeImage": {"scale": "1.0/255.0", "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 2]}}
    expected = (image / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2]
    assert np.abs(preprocess.build([op])(image) - expected.transpose(2, 0, 1)).max() < 1e-6


@pytest.mark.parametrize(
    ("scale", "value"), [(None, 1 / 255), (1, 1.0), ("2", 2.0), (" 1 / 4 ", 0.25), (0.5, 0.5)]
)
def test_scales(scale, value):
    op = {"NormalizeImage": {"scale": scale, "mean": [0, 0, 0], "std": [1, 1, 1]}}
    assert preprocess.build([op])(np.full((1, 1, 3), 200, np.uint8)) == pytest.approx(200 * value)


def test_normalising_is_by_imagenet_where_nothing_is_said():
    image = noise(5, 4)
    bare, full = preprocess.build([{"NormalizeImage": None}]), preprocess.build([NORMALIZE])
    assert (bare(image) == full(image)).all()


@pytest.mark.parametrize("order", ["", "hwc", "chw", None])
def test_normalising_knows_where_the_channels_are(order):
    image = noise(5, 4)
    mean = {"NormalizeImage": {"mean": [0.1, 0.5, 0.9], "order": order}}
    before = preprocess.build([mean, {"ToCHWImage": None}])
    after = preprocess.build([{"ToCHWImage": {}}, mean])
    assert (before(image) == after(image)).all()


def test_channels_reversed():
    image = noise(5, 4)
    out = preprocess.build([{"DecodeImage": {"to_rgb": False}}])(image)
    assert (out == image[:, :, ::-1].transpose(2, 0, 1)).all()
    assert (preprocess.build([{"DecodeImage": {"to_rgb": True}}])(image) == image.transpose(2, 0, 1)).all()


def test_harmless_parameters():
    """Keys of PaddleClas's own exports that say what is so anyway."""
    image = noise(30, 30)
    wordy = [
        {"DecodeImage": {"to_rgb": True, "to_np": False, "channel_first": False}},
        {"ResizeImage": {"size": 8, "return_numpy": False, "interpolation": "bilinear", "backend": "cv2"}},
        {"NormalizeImage": {"order": "", "output_fp16": False, "channel_num": 3}},
        {"ToCHWImage": None},
    ]
    plain = [{"ResizeImage": {"size": 8}}, {"NormalizeImage": {}}]
    assert (preprocess.build(wordy)(image) == preprocess.build(plain)(image)).all()


def text_line(bgr: np.ndarray) -> np.ndarray:
    """The formula of PaddleOCR's reader of text lines, for 3×48×192."""
    height, width = bgr.shape[:2]
    wide = min(192, math.ceil(48 * (width / float(height))))
    line = cv2.resize(bgr, (wide, 48)).astype(np.float32).transpose(2, 0, 1) / 255
    out = np.zeros((3, 48, 192), np.float32)
    out[:, :, :wide] = (line - 0.5) / 0.5
    return out


@pytest.mark.parametrize("size", [(100, 30), (30, 100), (1, 300), (400, 20), (192, 48), (193, 48), (7, 47)])
def test_text_lines_as_paddleocr_reads_them(size):
    chain = preprocess.build(catalog.get("ch_ppocr_mobile_v2_cls").transforms)
    image = noise(*size)
    assert np.abs(chain(image) - text_line(image[:, :, ::-1])).max() < 1e-6


def test_padding():
    image = noise(5, 4)
    out = preprocess.build([{"PadImage": {"size": [8, 6], "value": -1.5}}])(image)
    assert out.shape == (3, 6, 8)
    assert (out[:, :4, :5] == image.transpose(2, 0, 1)).all()
    assert (out[:, 4:] == -1.5).all()
    assert (out[:, :, 5:] == -1.5).all()
    with pytest.raises(ImageError, match="5×4, too large to be padded to 4×4"):
        preprocess.build([{"PadImage": {"size": 4}}])(image)


def test_detectors_operators_are_read_as_what_they_do():
    image = noise(50, 40)
    chain = preprocess.build(
        [
            {"DetResize": {"interp": 2, "keep_ratio": False, "target_size": [16, 24]}},
            {"DetNormalizeImage": {"is_scale": True, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}},
            {"DetPermute": {}},
        ]
    )
    resized = cv2.resize(image, (24, 16), interpolation=cv2.INTER_CUBIC)
    expected = (resized / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    assert chain.size == (16, 24)
    assert np.abs(chain(image) - expected.transpose(2, 0, 1)).max() < 1e-6


def test_a_needle_is_refused_before_it_fills_the_memory():
    """1×2,000 by its short side to 256 would be 131 megapixels; 1×60,000, a hundred thousand."""
    chain = preprocess.build([{"ResizeImage": {"resize_short": 256}}])

    def refused() -> None:
        with pytest.raises(ImageError, match=r"1×2000; .* 256×512000,"):
            chain(np.zeros((2000, 1, 3), np.uint8))

    outcome(refused, memory=64 << 20)
    assert chain(np.zeros((60, 1, 3), np.uint8)).shape == (3, 15360, 256)
    with pytest.raises(ImageError, match=f"256×66048, more than {preprocess.MAX_RESIZED} pixels"):
        chain(np.zeros((258, 1, 3), np.uint8))


@pytest.mark.parametrize(
    ("ops", "words"),
    [
        ("ResizeImage", "must be a list"),
        ([["ResizeImage"]], "one operator and its parameters"),
        ([{"ResizeImage": {"size": 1}, "CropImage": {"size": 1}}], "one operator and its parameters"),
        ([{"RandFlipImage": None}], "'RandFlipImage' is unknown; known are DecodeImage"),
        ([{"CropImage": 224}], "parameters of CropImage are 224"),
        ([{"CropImage": None}], "CropImage.size is None"),
        ([{"CropImage": {"size": 224, "center": True}}], "CropImage has no parameter 'center'; it has size"),
        ([{"CropImage": {"size": 0}}], "CropImage.size is 0"),
        ([{"CropImage": {"size": True}}], "CropImage.size is True"),
        ([{"CropImage": {"size": [224, "224"]}}], "CropImage.size is '224'"),
        ([{"CropImage": {"size": [1, 2, 3]}}], r"CropImage.size is \[1, 2, 3\]"),
        ([{"CropImage": {"size": 8001}}], "CropImage.size is 8001, more than 64000000 pixels"),
        ([{"ResizeImage": {"size": [48, 2**31]}}], r"ResizeImage.size is \[48, 2147483648\], more than"),
        ([{"PadImage": {"size": 10**9}}], "PadImage.size is 1000000000, more than"),
        ([{"ResizeImage": {}}], "ResizeImage needs size or resize_short"),
        ([{"ResizeImage": {"resize_short": 25.6}}], "ResizeImage.resize_short is 25.6"),
        ([{"ResizeImage": {"resize_short": 5000}}], "resize_short is 5000; .*more than 16777216 pixels"),
        (
            [{"ResizeImage": {"resize_short": 99}}, {"NormalizeImage": {}}, {"CropImage": {"size": 100}}],
            "CropImage to 100×100 fits no image after ResizeImage to a short side of 99; crop less",
        ),
        (
            [{"ResizeImage": {"size": [100, 99]}}, {"CropImage": {"size": 100}}],
            "CropImage to 100×100 fits no image after ResizeImage to 100×99; crop less",
        ),
        (
            [{"ResizeImage": {"resize_short": 100}}, {"PadImage": {"size": [200, 99]}}],
            "PadImage to 200×99 fits no image after ResizeImage to a short side of 100; fill up to more, or",
        ),
        (
            [{"DetResize": {"target_size": [9, 20], "keep_ratio": False}}, {"PadImage": {"size": [19, 9]}}],
            "PadImage to 19×9 fits no image after ResizeImage to 20×9; fill up to more, or resize to less",
        ),
        (
            [{"CropImage": {"size": 8}}, {"CropImage": {"size": 9}}],
            "9×9 fits no image after CropImage to 8×8",
        ),
        ([{"ResizeImage": {"resize_short": 256, "resize_long": 1}}], "no parameter 'resize_long'"),
        (
            [{"ResizeImage": {"size": 9, "interpolation": "cubic"}}],
            "interpolation is 'cubic'; cv2 has nearest",
        ),
        ([{"ResizeImage": {"size": 9, "interpolation": 9}}], "interpolation is 9"),
        (
            [{"ResizeImage": {"size": 9, "interpolation": "area", "backend": "pil"}}],
            "'area'; pil has nearest",
        ),
        ([{"ResizeImage": {"size": 9, "backend": "skimage"}}], "backend is 'skimage'; use cv2 or pil"),
        ([{"ResizeImage": {"size": 9, "keep_ratio": "yes"}}], "keep_ratio is 'yes'"),
        ([{"ResizeImage": {"resize_short": 9, "keep_ratio": True}}], "keep_ratio goes with size"),
        ([{"NormalizeImage": {}}, {"ResizeImage": {"size": 9, "backend": "pil"}}], "before the normalising"),
        ([{"NormalizeImage": {"means": [1, 1, 1]}}], "NormalizeImage has no parameter 'means'"),
        ([{"NormalizeImage": {"mean": [1, 1]}}], r"NormalizeImage.mean is \[1, 1\]"),
        ([{"NormalizeImage": {"mean": [1, 1, "x"]}}], "NormalizeImage.mean is 'x'"),
        ([{"NormalizeImage": {"std": [1, 0, 1]}}], "NormalizeImage.std has a zero"),
        ([{"NormalizeImage": {"scale": "1/0"}}], "NormalizeImage.scale is '1/0'"),
        ([{"NormalizeImage": {"scale": "1/"}}], "NormalizeImage.scale is '1/'"),
        ([{"NormalizeImage": {"scale": 0}}], "NormalizeImage.scale is 0; all images would be the same"),
        ([{"NormalizeImage": {"scale": "__import__('os')"}}], "NormalizeImage.scale is"),
        ([{"NormalizeImage": {"scale": float("nan")}}], "NormalizeImage.scale is nan"),
        ([{"NormalizeImage": {"scale": 10**400}}], "NormalizeImage.scale is 1000"),
        ([{"NormalizeImage": {"mean": [1e308, 0, 0]}}], "that float32 cannot hold"),
        ([{"NormalizeImage": {"scale": 1e39}}], "that float32 cannot hold"),
        ([{"NormalizeImage": {"output_fp16": True}}], "output_fp16 is True; only False is supported"),
        ([{"NormalizeImage": {"channel_num": 4}}], "channel_num is 4; only 3 is supported"),
        ([{"NormalizeImage": {"order": "nchw"}}], "order is 'nchw'; use chw or hwc"),
        ([{"DecodeImage": {"channel_first": True}}], "channel_first is True; only False is supported"),
        ([{"DecodeImage": {"to_rgb": 0}}], "DecodeImage.to_rgb is 0"),
        ([{"PadImage": {"size": 4, "value": None}}], "PadImage.value is None"),
        ([{"ToCHWImage": {"axis": 1}}], "ToCHWImage has no parameter 'axis'; it has none"),
        ([{"ToCHWImage": None}, {"CropImage": {"size": 4}}], "CropImage comes after ToCHWImage"),
        ([{"ToCHWImage": None}, {"ToCHWImage": None}], "ToCHWImage comes after ToCHWImage"),
        ([{"DetResize": {"target_size": [9, 9]}}], "DetResize.keep_ratio is True; only False"),
    ],
)
def test_what_does_not_fit_is_named(ops, words):
    with pytest.raises(SettingsError, match=words):
        preprocess.build(ops)


@pytest.mark.parametrize(
    ("ops", "size"),
    [
        ([{"ResizeImage": {"resize_short": 6}}, {"CropImage": {"size": 6}}], (6, 6)),
        ([{"ResizeImage": {"resize_short": 6}}, {"CropImage": {"size": [9, 6]}}], (6, 9)),  # of wide ones
        ([{"ResizeImage": {"resize_short": 6}}, {"PadImage": {"size": [12, 6]}}], (6, 12)),
        ([{"ResizeImage": {"size": [9, 6]}}, {"CropImage": {"size": [9, 6]}}], (6, 9)),
        ([{"CropImage": {"size": 5}}, {"ResizeImage": {"size": 9}}], (9, 9)),
    ],
)
def test_what_just_fits_is_taken(ops, size):
    assert preprocess.build(ops)(np.zeros((10, 20, 3), np.uint8)).shape == (3, *size)


def test_a_chain_without_end():
    with pytest.raises(SettingsError, match="33 operators, more than 32"):
        preprocess.build([{"DecodeImage": {}}] * 33)
