"""A small data set of real photographs, without a download: pictures that packages ship.

scikit-image and scikit-learn hold a few photographs. Each becomes a class of its own: many
crops of it, in every mode and size that pictures come in. The two halves of a photograph are
kept apart: training pictures are crops of the left, validation pictures of the right.

    python data_prep/photos/make_photos.py OUT [--each 24]
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "china.jpg",
    "coffee.png",
    "flower.jpg",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
UPSIDE_DOWN = 3  # EXIF orientation


def find_photos() -> list[Path]:
    """The photographs that installed packages hold, by name. Raises SystemExit if there are few."""
    found: dict[str, Path] = {}
    for package in ("skimage", "sklearn"):
        spec = find_spec(package)
        for place in spec.submodule_search_locations or () if spec else ():
            for path in sorted(Path(place).rglob("*")):
                if path.name in PHOTOS:
                    found.setdefault(path.name, path)
    if len(found) < 2:
        raise SystemExit("photographs are missing: pip install scikit-image scikit-learn")
    return [found[name] for name in sorted(found)]


def crop(photo: Image.Image, random: np.random.Generator, half: str) -> Image.Image:
    """A random square of one half of the photograph, 40 to 100 % of its height."""
    width, height = photo.size
    edge = int(min(width / 2, height) * random.uniform(0.4, 1.0))
    left = 0 if half == "train" else width // 2
    x = left + int(random.uniform(0, width // 2 - edge))
    y = int(random.uniform(0, height - edge))
    return photo.crop((x, y, x + edge, y + edge))


def save_as(picture: Image.Image, place: Path, number: int, random: np.random.Generator) -> None:
    """Save in one of the forms that pictures come in, in turn."""
    edge = int(random.integers(80, 700))
    picture = picture.resize((edge, int(edge * random.uniform(0.8, 1.2))))
    stem = place / f"{number:04d}"
    if number % 7 == 0:
        picture.convert("CMYK").save(stem.with_suffix(".jpg"), quality=90)
    elif number % 7 == 1:
        picture.convert("L").save(stem.with_suffix(".jpg"), quality=85)
    elif number % 7 == 2:
        picture.convert("P", palette=Image.Palette.ADAPTIVE).save(stem.with_suffix(".png"))
    elif number % 7 == 3:
        picture.putalpha(230)
        picture.save(stem.with_suffix(".png"))
    elif number % 7 == 4:
        exif = Image.Exif()
        exif[0x0112] = UPSIDE_DOWN
        turned = picture.transpose(Image.Transpose.ROTATE_180)
        turned.save(stem.with_suffix(".JPG"), quality=90, exif=exif)
    elif number % 7 == 5:
        grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        Image.fromarray(grey).save(stem.with_suffix(".png"))
    else:
        picture.save(stem.with_suffix(".jpeg"), quality=90)


def make(out: Path, each: int, seed: int = 0) -> int:
    """Write OUT/train and OUT/val, a folder a photograph, and one damaged file; the number."""
    random = np.random.default_rng(seed)
    photos = find_photos()
    for path in photos:
        with Image.open(path) as picture:
            photo = picture.convert("RGB")
        for half, count in (("train", each), ("val", max(1, each // 2))):
            place = out / half / path.stem
            place.mkdir(parents=True)
            for number in range(count):
                save_as(crop(photo, random, half), place, number, random)
    damaged = out / "train" / photos[0].stem / "damaged.jpg"
    whole = (out / "train" / photos[0].stem / "0006.jpeg").read_bytes() if each > 6 else b"x" * 99
    damaged.write_bytes(whole[: len(whole) // 2])
    return len(photos)


def main() -> None:
    """Make them and say so."""
    parser = argparse.ArgumentParser(description="A small data set of real photographs.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--each", type=int, default=24, help="training pictures a class (24)")
    args = parser.parse_args()
    classes = make(args.out, args.each)
    print(f"{args.out}: {classes} classes, one file of them damaged")


if __name__ == "__main__":
    main()
