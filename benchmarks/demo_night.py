"""Lays out a small night of real photographs whose redundancy is known by construction.

The photographs ship inside scikit-image and scikit-learn, so no network is needed.
"""

import io
import os
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import skimage
import sklearn.datasets
from PIL import Image, ImageEnhance

SKIMAGE_PHOTOS = Path(skimage.__file__).parent / "data"
SKLEARN_PHOTOS = Path(sklearn.datasets.__file__).parent / "images"

REPEATED_SCENES = {
    "astronaut": SKIMAGE_PHOTOS / "astronaut.png",
    "chelsea": SKIMAGE_PHOTOS / "chelsea.png",
    "coffee": SKIMAGE_PHOTOS / "coffee.png",
    "motorcycle": SKIMAGE_PHOTOS / "motorcycle_left.png",
    "rocket": SKIMAGE_PHOTOS / "rocket.jpg",
    "china": SKLEARN_PHOTOS / "china.jpg",
    "flower": SKLEARN_PHOTOS / "flower.jpg",
}
"""Photographs that come several times: as taken, re-encoded, rescaled, shifted, brightened."""

UNIQUE_SCENES = {
    "brick": SKIMAGE_PHOTOS / "brick.png",
    "coins": SKIMAGE_PHOTOS / "coins.png",
    "hubble": SKIMAGE_PHOTOS / "hubble_deep_field.jpg",
    "retina": SKIMAGE_PHOTOS / "retina.jpg",
}

SCENES_WITH_EXACT_COPY = ("astronaut", "coffee", "china")
BROKEN_NAME = "junction-9/000.jpg"
_FIRST_FRAME = datetime(2026, 1, 1, 2, 0, tzinfo=UTC)


@dataclass(frozen=True)
class GroundTruth:
    """What a perfect run says of the night; paths are relative to its folder."""

    groups: dict[str, frozenset[str]] = field(default_factory=dict)
    """Files of every scene that comes more than once."""
    unique: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()
    num_exact_copies: int = 0

    @property
    def num_images(self) -> int:
        """All files of the night."""
        return sum(map(len, self.groups.values())) + len(self.unique) + len(self.broken)


def lay_out_night(folder: Path) -> GroundTruth:
    """Write the night anew, the same bytes and times every time.

    Args:
        folder: Is emptied first when it exists.

    Returns:
        What is redundant in it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    groups = {}
    for number, (scene, photo) in enumerate(REPEATED_SCENES.items(), start=1):
        frames = _variants(Image.open(photo).convert("RGB"))
        if scene in SCENES_WITH_EXACT_COPY:
            frames.append(frames[0])
        names = [f"junction-{number}/{frame:03}.jpg" for frame in range(len(frames))]
        for name, content in zip(names, frames, strict=True):
            _write(folder / name, content)
        groups[scene] = frozenset(names)
    unique = []
    for number, photo in enumerate(UNIQUE_SCENES.values()):
        unique.append(f"junction-8/{number:03}.jpg")
        _write(folder / unique[-1], _jpeg(Image.open(photo).convert("RGB"), quality=90))
    broken = _jpeg(Image.open(REPEATED_SCENES["rocket"]).convert("RGB"), quality=90)
    _write(folder / BROKEN_NAME, broken[: len(broken) // 3])
    return GroundTruth(
        groups=groups,
        unique=frozenset(unique),
        broken=frozenset({BROKEN_NAME}),
        num_exact_copies=len(SCENES_WITH_EXACT_COPY),
    )


def _variants(photo: Image.Image) -> list[bytes]:
    width, height = photo.size
    shift = max(2, width // 100)
    return [
        _jpeg(photo, quality=92),
        _jpeg(photo, quality=70),
        _jpeg(photo.resize((width * 3 // 5, height * 3 // 5)), quality=90),
        _jpeg(photo.crop((shift, shift, width, height)), quality=90),
        _jpeg(ImageEnhance.Brightness(photo).enhance(1.1), quality=90),
    ]


def _jpeg(photo: Image.Image, *, quality: int) -> bytes:
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    taken = _FIRST_FRAME + timedelta(seconds=len(list(path.parent.iterdir())))
    os.utime(path, (taken.timestamp(), taken.timestamp()))
