"""The two score distributions of a check as a picture: how far they are apart is how good a gallery is."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pdserve.files import disk_errors
from pdserve.index.quality import Report

WIDTH, HEIGHT = 900, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 20, 70, 50
_SAME, _OTHER = (31, 119, 180), (214, 96, 32)
_BINS = 60

_Numbers = npt.NDArray[np.float64]


def histogram(
    report: Report,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Bin edges (61), and the shares (60 each) of the scores of the same label and of others in them."""
    both = np.concatenate([report.same, report.other])
    low = min(0.0, float(np.floor(both.min() * 10) / 10)) if len(both) else 0.0
    edges = np.linspace(low, 1.0, _BINS + 1)
    shares = [
        np.histogram(np.clip(scores, low, 1.0), edges)[0] / max(1, len(scores))
        for scores in (report.same, report.other)
    ]
    return edges, shares[0], shares[1]


def draw(report: Report, path: Path) -> None:
    """Write a PNG of ``WIDTH``×``HEIGHT`` pixels. Raises DiskError."""
    from PIL import Image, ImageDraw, ImageFont

    edges, same, other = histogram(report)
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    layer = ImageDraw.Draw(image, "RGBA")
    small, large = ImageFont.load_default(13), ImageFont.load_default(17)
    top = max(float(same.max()), float(other.max()), 1e-9)

    def x(score: float) -> float:
        return _LEFT + float((score - edges[0]) / (edges[-1] - edges[0])) * (WIDTH - _LEFT - _RIGHT)

    def y(share: float) -> float:
        return HEIGHT - _BOTTOM - share / top * (HEIGHT - _TOP - _BOTTOM)

    for tick in np.arange(np.ceil(edges[0] * 10), 11) / 10:
        layer.line([(x(tick), y(0)), (x(tick), y(top))], fill=(0, 0, 0, 25))
        layer.text((x(tick), y(0) + 6), f"{tick:.1f}", fill="black", font=small, anchor="mt")
    for share in np.linspace(0, top, 5):
        layer.text((_LEFT - 6, y(share)), f"{100 * share:.0f}%", fill="black", font=small, anchor="rm")
    for shares, color in ((other, _OTHER), (same, _SAME)):
        for i, share in enumerate(shares):
            if share:
                layer.rectangle([x(edges[i]) + 1, y(share), x(edges[i + 1]) - 1, y(0)], fill=(*color, 150))
    layer.line([(_LEFT, y(0)), (WIDTH - _RIGHT, y(0))], fill="black")
    layer.text((_LEFT, 10), f"{report.queries} of {report.count} images, each left out", "black", large)
    legend = (
        (_SAME, f"nearest of the same label ({len(report.same)})"),
        (_OTHER, f"nearest of another label ({len(report.other)})"),
    )
    at = float(_LEFT)
    for color, text in legend:
        layer.rectangle([at, 40, at + 12, 52], fill=(*color, 150))
        layer.text((at + 18, 46), text, fill="black", font=small, anchor="lm")
        at += 60 + layer.textlength(text, font=small)
    if report.threshold:
        line = x(report.threshold.score)
        layer.line([(line, y(0)), (line, _TOP - 8)], fill="black", width=2)
        layer.text(
            (line - 4, _TOP - 8), f"threshold {report.threshold.score:.4f}", "black", small, anchor="rm"
        )
    layer.text((WIDTH / 2, HEIGHT - 8), "similarity", fill="black", font=small, anchor="mb")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, "PNG")
