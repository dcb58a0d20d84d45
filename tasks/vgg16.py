"""VGG16 without its classifier: pixels in, features out. Loaded once per process."""

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tasks.quiet_tensorflow import tensorflow
from tasks.schemas import FEATURE_DIM
from tasks.weights import LAYERS, WEIGHTS_DIGEST, find_weights

__all__ = ["FEATURE_DIM", "WEIGHTS_DIGEST", "normalize_features", "pool_maps", "vgg16_maps"]

Pooling = Literal["avg", "max", "gem"]
Dtype = Literal["float32", "bfloat16"]

# Caffe's channel means in BGR order, which the original network was trained with.
_BGR_MEANS = (103.939, 116.779, 123.68)

# One forward pass at a time: it uses every core anyway, and two would double the peak memory.
# The other workers read and decode meanwhile.
_model_lock = threading.Lock()


def vgg16_maps(
    pixels: NDArray[np.uint8],
    *,
    batch_size: int,
    dtype: Dtype = "float32",
    weights_path: str | None = None,
) -> NDArray[np.float32]:
    """Run the convolutions of VGG16 (Simonyan & Zisserman, 2015) with ImageNet weights.

    Args:
        pixels: `(N, S, S, 3)` uint8 RGB with N at most `batch_size`. The pass always has
            `batch_size` images (the last batch is padded), so nothing is traced twice.
        batch_size: Images in one pass.
        dtype: Number format of the pass.
        weights_path: See `tasks.weights.find_weights`.

    Returns:
        `(N, S // 32, S // 32, 512)` float32, each at least 0. An image's maps do not depend on
        the other images of its batch.

    Raises:
        WeightsError: The weights are missing or wrong.
    """
    num_images, image_size = pixels.shape[:2]
    if num_images < batch_size:
        padding = np.zeros((batch_size - num_images, *pixels.shape[1:]), np.uint8)
        pixels = np.concatenate([pixels, padding])
    with _model_lock:
        forward = _load_forward(batch_size, image_size, dtype, weights_path)
        maps: NDArray[np.float32] = forward(pixels).numpy()
    return maps[:num_images]


@lru_cache(maxsize=2)
def _load_forward(
    batch_size: int, image_size: int, dtype: Dtype, weights_path: str | None
) -> Callable[[NDArray[np.uint8]], Any]:
    tf = tensorflow()
    keras = tf.keras
    tensors = find_weights(weights_path)
    policy = "mixed_bfloat16" if dtype == "bfloat16" else "float32"
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = keras.applications.VGG16(
            include_top=False, weights=None, input_shape=(image_size, image_size, 3)
        )
    finally:
        keras.config.set_dtype_policy(before)
    for layer in LAYERS:
        model.get_layer(layer).set_weights([tensors[f"{layer}/kernel"], tensors[f"{layer}/bias"]])

    shape = (batch_size, image_size, image_size, 3)

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.uint8)])  # type: ignore[untyped-decorator]
    def forward(pixels: Any) -> Any:
        bgr = tf.cast(pixels, tf.float32)[..., ::-1] - tf.constant(_BGR_MEANS)
        return tf.cast(model(bgr, training=False), tf.float32)

    return forward  # type: ignore[no-any-return]


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
