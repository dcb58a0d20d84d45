"""The convolutions of VGG16 on TensorFlow, which takes a GPU when it sees one."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.machine import Dtype
from tasks.quiet_tensorflow import tensorflow
from tasks.weights import LAYERS, Tensors

# Caffe's channel means in BGR order, which the original network was trained with.
_BGR_MEANS = (103.939, 116.779, 123.68)


def load_forward(
    tensors: Tensors, *, batch_size: int, image_size: int, dtype: Dtype
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Build the forward pass, traced for one shape.

    Args:
        tensors: See `tasks.weights`.
        batch_size: Images in one pass.
        image_size: Side `S` of the images.
        dtype: float32 or bfloat16.

    Returns:
        `(batch_size, S, S, 3)` uint8 RGB to `(batch_size, S // 32, S // 32, 512)` float32.
    """
    tf = tensorflow()
    keras = tf.keras
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if dtype == "bfloat16" else "float32")
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

    return lambda pixels: forward(pixels).numpy()
