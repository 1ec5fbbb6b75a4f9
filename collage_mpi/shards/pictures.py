"""Decodes pictures (JPEG, PNG and others that Pillow reads) into pixels of one size.

`collage-mpi prep` uses the same function as a job that decodes pictures. So both give the same
pixels with the same version of Pillow.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.system.printable import one_line

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MODES = ("crop", "letterbox")
FILTERS = ("bilinear", "bicubic", "lanczos", "nearest", "box", "hamming")  # of Pillow
MAX_PX = 1 << 14
DEFAULT_PX = 224  # if neither the user nor a network gives a size
PAPER = 255  # background of transparent pixels
BARS = 0  # fills a letterbox; blank cells of a collage have the same value
FIT_TEXT = re.compile(r"(\w+) (\d+) x \d+ x (\d+)(?: from (\d+))?(?: by (\w+))?")
BETWEEN_FITS = " + "
ORIENTATION = 0x0112  # of EXIF
DRAFT = 2  # a JPEG is decoded at 1/2, 1/4 or 1/8 if that still gives this times the needed pixels


class UnreadablePicture(DataFault):
    """The bytes are not a complete picture."""


class TooSmall(UnreadablePicture):
    """The picture would have to be enlarged, and this is not allowed."""


@dataclass(frozen=True)
class PictureFit:
    """How a picture of any size is resized to `px` x `px`.

    Attributes:
        px: height and width of the result.
        mode: "crop" (resize the shorter edge to `resize_px`, keep the middle) or "letterbox"
            (resize the longer edge to `px`, fill with black bars).
        resize_px: length of the shorter edge before the crop; None for `px`. Networks trained on
            ImageNet are usually evaluated with 256 for 224.
        channels: 3, or 1 for grey.
        filter: the resampling filter, one of FILTERS.
        beside: further fits of the same picture, for other networks. Their results lie below each
            other, with zeros to the right of those that are narrower than others, and behind the
            first channel of grey ones.
    """

    px: int
    mode: str = "crop"
    resize_px: int | None = None
    channels: int = 3
    filter: str = FILTERS[0]
    beside: tuple[PictureFit, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.px <= MAX_PX:
            raise UsageError(f"size {self.px} px; needed: 1 to {MAX_PX}")
        if self.mode not in MODES:
            raise UsageError(f"fit {self.mode!r}; known are {', '.join(MODES)}")
        if self.filter not in FILTERS:
            raise UsageError(f"filter {self.filter!r}; known are {', '.join(FILTERS)}")
        if self.channels not in (1, 3):
            raise UsageError(f"{self.channels} channels; needed: 1 or 3")
        if self.resize_px is not None and not self.px <= self.resize_px <= MAX_PX:
            raise UsageError(f"resize to {self.resize_px} px; needed: {self.px} to {MAX_PX}")
        if self.resize_px is not None and self.mode != "crop":
            raise UsageError("a resize before the crop has no meaning with letterbox: leave it out")

    @property
    def each(self) -> tuple[PictureFit, ...]:
        """This fit, and those beside it."""
        return (replace(self, beside=()), *self.beside)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the result."""
        sizes = [fit.px for fit in self.each]
        return (sum(sizes), max(sizes), max(fit.channels for fit in self.each))

    def text(self) -> str:
        """The fit as text, such as "crop 224 x 224 x 3"; `parse_fit` is the inverse."""
        return BETWEEN_FITS.join(map(_text_of_one, self.each))


def _text_of_one(fit: PictureFit) -> str:
    resized = f" from {fit.resize_px}" if fit.resize_px is not None else ""
    by = f" by {fit.filter}" if fit.filter != FILTERS[0] else ""
    return f"{fit.mode} {fit.px} x {fit.px} x {fit.channels}{resized}{by}"


def beside(fits: Sequence[PictureFit]) -> PictureFit:
    """The fit that gives the pictures of all these, or only one if they are all the same."""
    first, *more = fits
    return replace(first, beside=tuple(more)) if {*fits} != {first} else first


def split(pictures: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """The pictures of each fit in those of several, as views.

    Args:
        pictures: (n, H, W, C) uint8.
        shapes: (H, W, C) of each fit.
    """
    ends = accumulate(shape[0] for shape in shapes)
    return [
        pictures[:, end - shape[0] : end, : shape[1], : shape[2]]
        for end, shape in zip(ends, shapes, strict=True)
    ]


def usual_resize_px(px: int) -> int:
    """The usual length of the shorter edge before a crop to `px`: 256 for 224."""
    return min(MAX_PX, round(px * 256 / 224))


def parse_fit(text: str) -> PictureFit:
    """Parse the text that `PictureFit.text` returns. Raises DataFault."""
    try:
        first, *more = map(_parse_one, text.split(BETWEEN_FITS))
        fit = replace(first, beside=tuple(more))
    except (ValueError, UsageError) as error:
        raise DataFault(f"fit is {text!r:.80}; needed: such as 'crop 224 x 224 x 3'") from error
    if fit.text() != text:
        raise DataFault(f"fit is {text!r:.80}; needed: such as 'crop 224 x 224 x 3'")
    return fit


def _parse_one(text: str) -> PictureFit:
    found = FIT_TEXT.fullmatch(text)
    mode, px, channels, resize_px, by = found.groups() if found else ("", 0, 0, None, None)
    resized = None if resize_px is None else int(resize_px)
    return PictureFit(int(px), mode, resized, int(channels), by or FILTERS[0])


def import_decoders() -> None:
    """Import Pillow and its plugins for the usual formats now, which takes 30 to 80 ms."""
    from PIL import Image, ImageOps  # noqa: F401

    Image.preinit()


def decoder_text() -> str:
    """The decoder of JPEG files and its version, which decide the last bits of the pixels."""
    import PIL
    from PIL import features

    turbo = features.version_feature("libjpeg_turbo")
    return f"Pillow {PIL.__version__}, " + (f"libjpeg-turbo {turbo}" if turbo else "libjpeg")


def picture_pixels(data: bytes, fit: PictureFit, *, enlarge: bool = True) -> np.ndarray:
    """Decode a picture, rotate it as its EXIF data says, and resize it.

    Args:
        data: the bytes of the file. The picture may be grey, palette, RGB or CMYK, with 1 to 16
            bits a channel. Alpha is composited on white. Of several frames the first is used.
        fit: how to resize.
        enlarge: whether the picture may be enlarged.

    Returns:
        (px, px, C) uint8; see `PictureFit.beside` for several fits.

    Raises:
        TooSmall: the picture has fewer pixels than needed, and `enlarge` is False.
        UnreadablePicture: the bytes are not a picture, are truncated or damaged, or the picture has
            over 179 million pixels or pixels of unknown range (float, 32 bits).
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise UnreadablePicture("the file is empty")
    try:
        with warnings.catch_warnings():
            # Warnings of damaged EXIF and large pictures; errors still raise.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                _draft(picture, fit)
                upright = _upright(picture)
                if not enlarge:
                    _refuse_small(upright.size, fit)
                return _fitted(upright, fit)
    except UnreadablePicture:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        if isinstance(error, UnidentifiedImageError):
            known = ", ".join(FORMATS)
            raise UnreadablePicture(f"no picture in a known format ({known})") from error
        raise UnreadablePicture(f"{type(error).__name__}: {one_line(error, 160)}") from error


def fit_pixels(image: np.ndarray, fit: PictureFit) -> np.ndarray:
    """Resize an image, (H, W, 1 or 3) uint8, as `picture_pixels` does. Returns uint8 of the fit's
    shape."""
    from PIL import Image

    plain = image[:, :, 0] if image.shape[2] == 1 else image
    return _fitted(Image.fromarray(plain), fit)


def is_enlarged(data: bytes, fit: PictureFit) -> bool:
    """Whether a picture is enlarged to fit. Only its header is read; False for no picture."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            edge, needed, _ = _edge(picture.size, fit)
            return edge < needed
    except Exception:  # Pillow's readers raise nearly anything on damaged files
        return False


def _edge(size: tuple[int, int], fit: PictureFit) -> tuple[int, int, str]:
    """The edge that decides whether a picture is enlarged, its needed length, and its name; of the
    fit that needs the most pixels."""
    edges = (
        (max(size), one.px, "longer")
        if one.mode == "letterbox"
        else (min(size), one.resize_px or one.px, "shorter")
        for one in fit.each
    )
    return min(edges, key=lambda each: each[0] / each[1])


def _refuse_small(size: tuple[int, int], fit: PictureFit) -> None:
    edge, needed, which = _edge(size, fit)
    if edge < needed:
        raise TooSmall(
            f"it has {size[0]} x {size[1]} pixels, and its {which} edge needs {needed}: "
            "--enlarge takes it"
        )


def _draft(picture: Any, fit: PictureFit) -> None:
    """Let libjpeg decode at a reduced size if the picture is much larger than needed."""
    if picture.format not in ("JPEG", "MPO"):
        return
    edge, least, _ = _edge(picture.size, fit)
    scale = max(1.0, edge / (DRAFT * least))
    picture.draft(None, (int(picture.width / scale), int(picture.height / scale)))


def _upright(picture: Picture) -> Picture:
    """Rotate the picture as its EXIF data says. Damaged EXIF data is ignored."""
    from PIL import ImageOps

    picture.load()
    try:
        if ORIENTATION not in picture.getexif():
            return picture  # exif_transpose would copy it, 6 % of the time of a photograph
        return ImageOps.exif_transpose(picture)
    except Exception:  # the pixels are intact, so a bad tag must not cost the image
        return picture


def _plain(picture: Picture, channels: int) -> Picture:
    """The picture in 8-bit mode: RGB, or L for one channel."""
    wanted = "RGB" if channels == 3 else "L"
    if picture.mode == "F":
        raise UnreadablePicture("floating-point pixels, whose range is not known")
    if picture.mode == "I" or picture.mode.startswith("I;"):
        picture = _eight_bits(picture)
    elif "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        picture = _on_paper(picture)
    return picture if picture.mode == wanted else picture.convert(wanted)


def _eight_bits(picture: Picture) -> Picture:
    from PIL import Image

    deep = np.asarray(picture).astype(np.int64)
    if deep.min() < 0 or deep.max() > 65535:
        raise UnreadablePicture("pixels of 32 bits, whose range is not known")
    return Image.fromarray(((deep + 128) // 257).astype(np.uint8))  # 0..65535 -> 0..255


def _on_paper(picture: Picture) -> Picture:
    from PIL import Image

    clear = picture.convert("RGBA")
    paper = Image.new("RGBA", clear.size, (PAPER, PAPER, PAPER, 255))
    return Image.alpha_composite(paper, clear).convert("RGB")


def _fitted(picture: Picture, fit: PictureFit) -> np.ndarray:
    """uint8 of the fit's shape: the picture in 8 bits, resized and cropped, or put between bars, in
    one pass for each of its fits."""
    pixels = np.full(fit.shape, BARS, dtype=np.uint8)
    places = split(pixels[None], [one.shape for one in fit.each])
    plain = {one.channels: _plain(picture, one.channels) for one in fit.each}
    for one, (place,) in zip(fit.each, places, strict=True):
        _fit_one(plain[one.channels], one, place)
    return pixels


def _fit_one(picture: Picture, fit: PictureFit, pixels: np.ndarray) -> None:
    """Write the picture of one fit, (px, px, C) uint8."""
    from PIL import Image

    width, height = picture.size
    if fit.mode == "letterbox":
        scale = fit.px / max(width, height)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        left, top = (fit.px - size[0]) // 2, (fit.px - size[1]) // 2
        small = picture.resize(size, Image.Resampling[fit.filter.upper()])
        inside = pixels[top : top + size[1], left : left + size[0]]
        inside[...] = np.asarray(small).reshape(inside.shape)
        return
    edge = min(width, height) * fit.px / (fit.resize_px or fit.px)  # of the square that is kept
    x, y = (width - edge) / 2, (height - edge) / 2
    box = (x, y, x + edge, y + edge)
    # When Pillow shrinks, its filters widen with the scale, so they average like an area filter.
    small = picture.resize((fit.px, fit.px), Image.Resampling[fit.filter.upper()], box=box)
    pixels[...] = np.asarray(small).reshape(fit.shape)
