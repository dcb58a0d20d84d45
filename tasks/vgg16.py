"""VGG16 without its classifier: pixels in, features out. Loaded once per process."""

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks import vgg16_openvino, vgg16_tensorflow
from tasks.machine import Dtype, Engine, require_format, this_machine
from tasks.schemas import FEATURE_DIM
from tasks.weights import WEIGHTS_DIGEST, find_weights

__all__ = ["FEATURE_DIM", "WEIGHTS_DIGEST", "normalize_features", "pool_maps", "vgg16_maps"]

Pooling = Literal["avg", "max", "gem"]

# One forward pass at a time: it uses every core anyway, and two would double the peak memory.
# The other workers read and decode meanwhile.
_model_lock = threading.Lock()


def vgg16_maps(
    pixels: NDArray[np.uint8],
    *,
    batch_size: int,
    engine: Engine = "tensorflow",
    dtype: Dtype = "float32",
    weights_path: str | None = None,
) -> NDArray[np.float32]:
    """Run the convolutions of VGG16 (Simonyan & Zisserman, 2015) with ImageNet weights.

    Args:
        pixels: `(N, S, S, 3)` uint8 RGB with N at most `batch_size`. The pass always has
            `batch_size` images (the last batch is padded), so nothing is traced twice.
        batch_size: Images in one pass.
        engine: What runs it.
        dtype: Number format of the pass.
        weights_path: See `tasks.weights.find_weights`.

    Returns:
        `(N, S // 32, S // 32, 512)` float32, each at least 0. An image's maps do not depend on
        the other images of its batch.

    Raises:
        EngineError: The engine is not installed, or the machine does not compute in the format.
        WeightsError: The weights are missing or wrong.
    """
    num_images, image_size = pixels.shape[:2]
    if num_images < batch_size:
        padding = np.zeros((batch_size - num_images, *pixels.shape[1:]), np.uint8)
        pixels = np.concatenate([pixels, padding])
    with _model_lock:
        forward = _load_forward(engine, dtype, batch_size, image_size, weights_path)
        maps = forward(pixels)
    return maps[:num_images]


def usual_batch_size(engine: Engine) -> int:
    """Images in one forward pass when the settings leave it open: a GPU is busy only with many."""
    return 64 if engine == "tensorflow" and this_machine().gpu_capabilities else 8


@lru_cache(maxsize=2)
def _load_forward(
    engine: Engine, dtype: Dtype, batch_size: int, image_size: int, weights_path: str | None
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    require_format(this_machine(), engine, dtype)
    load = {
        "openvino": vgg16_openvino.load_forward,
        "tensorflow": vgg16_tensorflow.load_forward,
    }[engine]
    tensors = find_weights(weights_path)
    return load(tensors, batch_size=batch_size, image_size=image_size, dtype=dtype)


def pool_maps(
    maps: NDArray[np.float32], *, pooling: Pooling, gem_p: float = 3.0
) -> NDArray[np.float32]:
    """Pool each channel over its positions.

    Args:
        maps: `(N, H, W, C)` float32, each at least 0.
        pooling: Mean, maximum, or generalised mean (Radenović et al., 2018).
        gem_p: Exponent of the generalised mean; 1 is the mean.

    Returns:
        `(N, C)` float32.
    """
    positions = maps.reshape(maps.shape[0], -1, maps.shape[-1])
    pooled: NDArray[np.floating]
    if pooling == "max":
        pooled = positions.max(axis=1)
    elif pooling == "gem":
        powers = np.power(positions, gem_p, dtype=np.float64).mean(axis=1)
        pooled = np.power(powers, 1.0 / gem_p)
    else:
        pooled = positions.mean(axis=1, dtype=np.float64)
    return pooled.astype(np.float32)


def normalize_features(pooled: NDArray[np.float32], *, power: float) -> NDArray[np.float32]:
    """Power-normalise, then scale to unit length (Perronnin et al., 2010).

    Args:
        pooled: `(N, C)` float32, each at least 0.
        power: Exponent in (0, 1]; 1 leaves the components as they are.

    Returns:
        `(N, C)` float32 of L2 norm 1; a vector of zeros stays zeros.
    """
    powered = np.power(pooled, power, dtype=np.float64)
    norms = np.linalg.norm(powered, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(
        powered, norms, out=np.zeros_like(powered), where=norms > 0
    )
    return unit.astype(np.float32)
