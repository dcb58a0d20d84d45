"""Nights of any size that nobody has to embed: tiny files and a feature store made of noise."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from config import FeatureSettings
from tasks import storage
from tasks.feature_store import feature_metadata, store_url
from tasks.schemas import FEATURE_DIM, FEATURES
from tasks.stage01_list_images import image_id
from tasks.storage import StoredFile

FILES_PER_FOLDER = 1_000
EMPTY = ("view", "background", "error", "stands_on", "gate_error")


def read_pictures(folder: Path) -> Iterator[Image.Image]:
    """The pictures of a folder that can be read, in the order of their names."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            with Image.open(path) as picture:
                yield picture.convert("RGB")
        except OSError:
            continue


def lay_out_files(folder: Path, num_images: int) -> None:
    """Write files of a few bytes, each another, a thousand to a camera."""
    for camera in range(-(-num_images // FILES_PER_FOLDER)):
        below = folder / f"camera-{camera:04}"
        below.mkdir(parents=True, exist_ok=True)
        for number in range(min(FILES_PER_FOLDER, num_images - camera * FILES_PER_FOLDER)):
            (below / f"{number:06}.jpg").write_bytes(f"{camera} {number}".encode())


def scene_features(
    rng: np.random.Generator, num_images: int, *, images_per_scene: int = 20, spread: float = 0.002
) -> NDArray[np.float32]:
    """Features like those of fixed cameras: scenes far apart, the images of one close together.

    Args:
        rng: Where the noise comes from.
        num_images: How many.
        images_per_scene: Images that follow each other and show the same.
        spread: Standard deviation of a component around its scene's.

    Returns:
        `(num_images, 512)` float32 of unit length.
    """
    scenes = np.abs(rng.standard_normal((-(-num_images // images_per_scene), FEATURE_DIM)))
    scenes /= np.linalg.norm(scenes, axis=1, keepdims=True)
    features = np.repeat(scenes.astype(np.float32), images_per_scene, axis=0)[:num_images]
    features += spread * rng.standard_normal(features.shape, np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features


def fill_store(
    workspace_url: str, settings: FeatureSettings, files: Sequence[StoredFile], rows_per_file: int
) -> None:
    """Write feature files for files that nobody has read."""
    store = store_url(storage.absolute_url(workspace_url), settings)
    for number, part in enumerate(_parts(files, rows_per_file)):
        features = scene_features(np.random.default_rng(number), len(part))
        table = pa.table(
            {
                "image_id": [image_id(file.url, file.size_bytes, file.etag) for file in part],
                "url": [file.url for file in part],
                "size_bytes": [file.size_bytes for file in part],
                "etag": [file.etag for file in part],
                "sha256": [hashlib.sha256(file.url.encode()).hexdigest() for file in part],
                "width": np.full(len(part), 640, np.int32),
                "height": np.full(len(part), 480, np.int32),
                "sharpness": np.linspace(0, 1, len(part), dtype=np.float32),
                "feature": pa.FixedSizeListArray.from_arrays(features.ravel(), FEATURE_DIM),
                "thumbnail": [
                    some_thumbnail(rows_per_file * number + row) for row in range(len(part))
                ],
                **{name: pa.nulls(len(part), FEATURES.field(name).type) for name in EMPTY},
            },
            schema=FEATURES,
        )
        storage.publish_table(
            storage.join(store, f"synthetic-{number:06}.parquet"),
            table.replace_schema_metadata(feature_metadata(settings)),
        )


def some_thumbnail(number: int) -> bytes:
    """A JPEG of about 3 kB, as thumbnails of real frames are; another for each number."""
    clouds = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(clouds).resize((160, 120), Image.Resampling.BILINEAR).save(jpeg, "JPEG")
    return jpeg.getvalue()


def _parts(files: Sequence[StoredFile], size: int) -> Iterator[Sequence[StoredFile]]:
    for start in range(0, len(files), size):
        yield files[start : start + size]
