"""Detectors' preprocessing, in PaddleDetection's form, against the same steps written out with OpenCV."""

from typing import Any

import cv2
import numpy as np
import pytest

from pdserve.errors import ImageError, SettingsError
from pdserve.vision.detector_chain import build

IMAGE = np.random.default_rng(5).integers(0, 256, (50, 71, 3)).astype(np.uint8)
PERMUTE = {"type": "Permute"}
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def resize(height: int, width: int, interp: int = 1, **more: Any) -> dict[str, Any]:
    return {"type": "Resize", "target_size": [height, width], "interp": interp, "keep_ratio": False} | more


def normalize(**more: Any) -> dict[str, Any]:
    return {
        "type": "NormalizeImage",
        "is_scale": True,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    } | more


def run(*ops: dict[str, Any], image: np.ndarray = IMAGE) -> np.ndarray:
    """The tensor, as pixels."""
    made = build(ops)(image).image
    assert made.dtype == np.float32
    assert made.flags.c_contiguous
    return made.transpose(1, 2, 0)


@pytest.mark.parametrize(
    ("interp", "flag"),
    [
        (0, cv2.INTER_NEAREST),
        (1, cv2.INTER_LINEAR),
        (2, cv2.INTER_CUBIC),
        (3, cv2.INTER_AREA),
        (4, cv2.INTER_LANCZOS4),
        ("LINEAR", cv2.INTER_LINEAR),
        ("BICUBIC", cv2.INTER_CUBIC),
        ("LANCZOS4", cv2.INTER_LANCZOS4),
    ],
)
def test_bytes_are_resized_and_rounded_before_they_are_normalised(interp: int | str, flag: int) -> None:
    small = cv2.resize(IMAGE, (48, 32), interpolation=flag)
    assert small.dtype == np.uint8
    made = run(resize(32, 48, interp), normalize(norm_type="mean_std"), PERMUTE)
    assert np.abs(made - (small.astype(np.float32) / 255 - MEAN) / STD).max() < 1e-5


def test_the_order_is_the_files() -> None:
    """Normalised first, it is resized in floats, as PP-ShiTu's first service did."""
    normal = (IMAGE.astype(np.float32) / 255 - MEAN) / STD
    expected = cv2.resize(normal, (48, 32), interpolation=cv2.INTER_CUBIC)
    assert np.abs(run(normalize(), resize(32, 48, 2), PERMUTE) - expected).max() < 1e-4


def test_normalising() -> None:
    floats = IMAGE.astype(np.float32)
    assert (run(PERMUTE) == floats).all()
    assert (
        np.abs(
            run(normalize(is_scale=False, mean=[123, 117, 104], std=[127.5, 128, 129]))
            - (floats - [123, 117, 104]) / [127.5, 128, 129]
        ).max()
        < 1e-5
    )
    # RT-DETR and PP-YOLOE+: mean 0, std 1; and the trainer leaves both out, whatever they are.
    for more in ({"mean": [0, 0, 0], "std": [1, 1, 1], "norm_type": "none"}, {"norm_type": "none"}):
        assert np.abs(run(normalize(**more)) - floats / 255).max() < 1e-6
    assert np.abs(run({"type": "NormalizeImage"}) - (floats / 255 - MEAN) / STD).max() < 1e-5


@pytest.mark.parametrize(
    ("image", "target", "size"),
    [
        ((50, 71), (640, 640), (451, 640)),  # 640/71 is less than 640/50
        ((71, 50), (640, 640), (640, 451)),
        ((480, 640), (800, 1333), (800, 1067)),
        ((640, 480), (800, 1333), (1067, 800)),  # the target's sides go to the image's longer and shorter
        ((1000, 3000), (800, 1333), (444, 1333)),
        ((1, 2000), (64, 64), (1, 64)),
    ],
)
def test_the_ratio_is_kept(image: tuple[int, int], target: tuple[int, int], size: tuple[int, int]) -> None:
    picture = np.zeros((*image, 3), np.uint8)
    chain = build([resize(*target, keep_ratio=True), PERMUTE])
    made = chain(picture)
    assert made.image.shape == (3, *size)
    assert chain.size is None
    assert made.im_shape.tolist() == list(size)
    assert made.scale_factor == pytest.approx([size[0] / image[0], size[1] / image[1]], rel=1e-6)
    assert made.im_shape.dtype == made.scale_factor.dtype == np.float32


def test_a_given_size_scales_each_side_for_itself() -> None:
    chain = build([resize(32, 48), PERMUTE])
    made = chain(IMAGE)
    assert chain.size == (32, 48)
    assert made.im_shape.tolist() == [32, 48]
    assert made.scale_factor == pytest.approx([32 / 50, 48 / 71], rel=1e-6)


def test_yolox_fills_at_the_right_and_below() -> None:
    """Its shape and scale are those of before: the boxes are the image's."""
    chain = build(
        [
            resize(64, 64, keep_ratio=True),
            {"type": "Pad", "size": [64, 64], "fill_value": [114.0, 1, 2]},
            PERMUTE,
        ]
    )
    assert chain.size == (64, 64)
    made = chain(IMAGE)
    assert made.im_shape.tolist() == [45, 64]
    assert (made.image[:, :45].transpose(1, 2, 0) == cv2.resize(IMAGE, (64, 45))).all()
    assert (made.image[:, 45:] == np.array([114, 1, 2])[:, None, None]).all()
    with pytest.raises(ImageError, match="71×50, too large to be padded to 64×64"):
        build([{"type": "Pad", "size": [64, 64]}])(IMAGE)


def test_rcnn_fills_up_to_whole_strides() -> None:
    chain = build(
        [resize(60, 100, keep_ratio=True), normalize(), PERMUTE, {"type": "PadStride", "stride": 32}]
    )
    made = chain(IMAGE)
    assert chain.size is None
    assert made.image.shape == (3, 64, 96)
    assert made.im_shape.tolist() == [60, 85]
    plain = build([resize(60, 100, keep_ratio=True), normalize(), PERMUTE])(IMAGE)
    assert (made.image[:, :60, :85] == plain.image).all()
    assert not made.image[:, 60:].any()
    assert not made.image[:, :, 85:].any()
    assert build([resize(60, 100), PERMUTE, {"type": "PadStride", "stride": 32}]).size == (64, 128)
    assert build([PERMUTE, {"type": "PadStride", "stride": 0}])(IMAGE).image.shape == (3, 50, 71)


def test_centernet_takes_the_image_into_the_middle_of_a_larger_one() -> None:
    chain = build([{"type": "WarpAffine", "keep_res": True, "input_h": 512, "input_w": 512}, PERMUTE])
    made = chain(IMAGE)
    assert chain.size is None
    assert made.image.shape == (3, 64, 96)
    top, left = 32 - 25, 48 - 35
    assert (
        made.image[::-1, top : top + 50, left : left + 71].transpose(1, 2, 0) == IMAGE
    ).all()  # blue first
    assert not made.image[:, :top].any()
    assert made.scale_factor.tolist() == [1, 1]
    assert made.im_shape.tolist() == [50, 71]
    scaled = build([{"type": "WarpAffine", "keep_res": False, "input_h": 40, "input_w": 142}, PERMUTE])
    assert scaled.size == (40, 142)
    assert (
        np.abs(scaled(np.full((50, 71, 3), 9, np.uint8)).image[:, :, 5:-5] - 9).max() == 0
    )  # twice as large


def test_without_resizing_the_shape_is_the_images() -> None:
    """BlazeFace takes every image as it is."""
    made = build([normalize(is_scale=False), PERMUTE])(IMAGE)
    assert made.image.shape == (3, 50, 71)
    assert made.im_shape.tolist() == [50, 71]
    assert made.scale_factor.tolist() == [1, 1]


def test_what_would_become_too_large() -> None:
    wide = np.zeros((1, 60_000, 3), np.uint8)
    with pytest.raises(ImageError, match=r"60000×1; .* become 60000×2000, more than 64000000 pixels"):
        build([PERMUTE, {"type": "PadStride", "stride": 2000}])(wide)
    # A model that takes images in their own size takes memory by their size.
    large = np.zeros((4001, 4000, 3), np.uint8)
    with pytest.raises(ImageError, match="more than 16000000 pixels"):
        build([normalize(), PERMUTE])(large)
    assert build([normalize(), resize(8, 8, keep_ratio=True), PERMUTE])(large).image.shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("op", "words"),
    [
        ({"type": "LetterBoxResize"}, "'LetterBoxResize' is unknown; known are Resize, NormalizeImage"),
        ({"Resize": {"target_size": [1, 1]}}, "operator None is unknown"),
        ({"type": ["Resize"]}, "is unknown"),
        ({"type": "Resize"}, "Resize.target_size is None"),
        (resize(0, 1), "Resize.target_size is"),
        (resize(100_000, 100_000), "more than 64000000 pixels"),
        (resize(1, 1, 9), "interpolation is 9"),
        (resize(1, 1, keep_ratio="yes"), "Resize.keep_ratio is 'yes'"),
        (resize(1, 1, sharp=True), "Resize has no parameter 'sharp'"),
        (normalize(norm_type="zscore"), "norm_type is 'zscore'; use mean_std or none"),
        (normalize(std=[0, 1, 1]), "std has a zero"),
        (normalize(mean=[0, 1]), "mean is .*; it must be three numbers"),
        (normalize(mean=[1e300] * 3), "cannot hold"),
        (normalize(is_scale=1), "is_scale is 1"),
        ({"type": "Pad", "size": [3, 640, 640]}, "Pad.size is"),
        ({"type": "PadStride", "stride": -1}, "PadStride.stride is -1"),
        ({"type": "WarpAffine", "input_h": 0}, "WarpAffine.input_h is 0"),
        ({"type": "Permute", "to_bgr": True}, "Permute has no parameter 'to_bgr'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_refused(op: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        build([op])


def test_a_filling_that_no_image_fits() -> None:
    with pytest.raises(SettingsError, match="would be 20×10, too large to be padded to 19×10"):
        build([resize(10, 20), {"type": "Pad", "size": [10, 19]}])
    assert build([resize(10, 20), {"type": "Pad", "size": [10, 20]}]).size == (10, 20)


def test_what_comes_after_permute() -> None:
    with pytest.raises(SettingsError, match="Resize comes after Permute"):
        build([PERMUTE, resize(1, 1)])


def test_a_chain_without_end() -> None:
    with pytest.raises(SettingsError, match="33 operators, more than 32"):
        build([normalize()] * 33)
