"""How well features tell same from different: `python -m benchmarks.quality FOLDER`.

The folder holds a groups.csv whose first two columns are a path and the group it belongs to.
`--plain` adds the plain way of getting features on the same images: full decoding, Keras's own
preprocessing and pooling, in float32 at 224 pixels.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from config import DedupConfig, FeatureSettings
from tasks.measures import average_precisions
from tasks.memo import FeatureMemo
from tasks.quiet_tensorflow import tensorflow
from tasks.stage03_embed_shard import embed_images, embed_pixels
from tasks.vgg16 import normalize_features, usual_batch_size
from tasks.weights import LAYERS, find_weights

Features = NDArray[np.float32]


def main() -> int:
    """Print one line per way of getting features."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", default="tensorflow")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--plain", action="store_true", help="compare with plain Keras")
    options = parser.parse_args()
    folder = options.folder
    settings = FeatureSettings(
        engine=options.engine, dtype=options.dtype, image_size=options.image_size
    )
    with (folder / "groups.csv").open(newline="") as file:
        rows = [(row[0], row[1]) for row in list(csv.reader(file))[1:]]
    paths = [find_image(folder, path) for path, _ in rows]
    groups = np.unique([group for _, group in rows], return_inverse=True)[1]
    print(f"{len(paths)} images in {groups.max() + 1} groups: {folder.name}")
    ours = our_features(paths, settings)
    name = f"{settings.engine} {settings.dtype} {settings.image_size}"
    print(f"{name:24}  {describe(ours, groups)}")
    if options.plain:
        plain = plain_features(paths)
        print(f"{'plain Keras':24}  {describe(plain, groups)}")
        moved = 1 - np.einsum("ij,ij->i", ours, plain)
        print(f"largest cosine distance between the two features of an image: {moved.max():.5f}")
    return 0


def find_image(folder: Path, path: str) -> Path:
    """The file of a groups.csv row: below the folder, or below its only subfolder."""
    for candidate in (folder / path, *folder.glob(f"*/{path}")):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{folder}: groups.csv names {path}, which is not there")


def our_features(paths: list[Path], settings: FeatureSettings) -> Features:
    """Features as the flow computes them: `(N, 512)` float32."""
    config = DedupConfig(source_url="unused", workspace_url="unused", features=settings)
    images = [{"url": str(path), "size_bytes": path.stat().st_size, "camera": ""} for path in paths]
    rows = embed_images(
        images,
        read=lambda url: Path(url).read_bytes(),
        embed=lambda pixels: embed_pixels(pixels, config),
        settings=settings,
        batch_size=usual_batch_size(settings.engine),
        memo=FeatureMemo(),
    )
    return np.stack([row["feature"] for row in rows])


def plain_features(paths: list[Path]) -> Features:
    """Features by the shortest way through Keras: `(N, 512)` float32."""
    keras = tensorflow().keras
    tensors = find_weights(None)
    model = keras.applications.VGG16(
        include_top=False, weights=None, pooling="avg", input_shape=(224, 224, 3)
    )
    for layer in LAYERS:
        model.get_layer(layer).set_weights([tensors[f"{layer}/kernel"], tensors[f"{layer}/bias"]])
    pooled = []
    for path in paths:
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        pixels = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR), np.float32)
        pooled.append(model(keras.applications.vgg16.preprocess_input(pixels[None])).numpy()[0])
    return normalize_features(np.stack(pooled), power=0.5)


def describe(features: Features, groups: NDArray[np.int64]) -> str:
    """Mean average precision, recall at precision 0.99 and best F1, in words."""
    mean_ap, at_99, f1 = measure(features, groups)
    return f"mAP {mean_ap:.3f}  recall at precision 0.99 {at_99:.3f}  best F1 {f1:.3f}"


def measure(features: Features, groups: NDArray[np.int64]) -> tuple[float, float, float]:
    """Mean average precision, recall of same-group pairs at precision 0.99, and best F1.

    Args:
        features: `(N, D)` float32 of unit length, or zeros for an image that is like no other.
        groups: `(N,)` the group of each.
    """
    precision, recall = precision_and_recall(features, groups)
    at_99 = recall[precision >= 0.99].max(initial=0.0)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    return mean_average_precision(features, groups), float(at_99), float(f1.max())


def precision_and_recall(
    features: Features, groups: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision and recall of same-group pairs when ever more distant pairs are accepted.

    One value of each for every distance that occurs: no threshold takes one of two equally distant
    pairs and leaves the other.
    """
    first, second = np.triu_indices(len(features), 1)
    distances = 1 - np.einsum("ij,ij->i", features[first], features[second])
    order = np.argsort(distances)
    accepted = np.flatnonzero(np.diff(distances[order], append=np.inf)) + 1
    hits = np.cumsum((groups[first] == groups[second])[order])
    return hits[accepted - 1] / accepted, hits[accepted - 1] / hits[-1]


def mean_average_precision(features: Features, groups: NDArray[np.int64]) -> float:
    """Mean of the average precision of the ranked neighbours of each image that has any."""
    return float(np.nanmean(average_precisions(features, groups)))


if __name__ == "__main__":
    sys.exit(main())
