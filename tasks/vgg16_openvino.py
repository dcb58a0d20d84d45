"""The convolutions of VGG16 on OpenVINO, built from the very weights, in 32, 16 or 8 bits.

In 8 bits each kernel is rounded to 255 steps per output channel, and what enters a convolution to
256 steps from 0 to the end of that layer's range (Jacob et al., 2018). The ranges stand below, so
every worker has the same network without calibrating anything; `benchmarks.calibration` measures
them again. The first convolution stays in float32: it is half a percent of the work, and the one
whose rounding would cost most.
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import EngineError
from tasks.machine import Dtype
from tasks.schemas import fingerprint
from tasks.weights import LAYERS, WEIGHTS_DIGEST, Tensors

RANGES = {
    "block1_conv2": 540.0,
    "block2_conv1": 2330.0,
    "block2_conv2": 4530.0,
    "block3_conv1": 6900.0,
    "block3_conv2": 9080.0,
    "block3_conv3": 10200.0,
    "block4_conv1": 9500.0,
    "block4_conv2": 6940.0,
    "block4_conv3": 3380.0,
    "block5_conv1": 2440.0,
    "block5_conv2": 1250.0,
    "block5_conv3": 600.0,
}
"""Where the 8-bit range of each convolution's input ends; larger values count as this one."""

QUANTIZATION_DIGEST = fingerprint(WEIGHTS_DIGEST, RANGES)
"""Names the 8-bit network: all of it follows from the weights and the ranges."""

_RGB_MEANS = np.array([123.68, 116.779, 103.939], np.float32).reshape(1, 3, 1, 1)
_LAST_OF_BLOCKS = frozenset(
    {"block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3"}
)
_PRECISION_OF = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}


def load_forward(
    tensors: Tensors, *, batch_size: int, image_size: int, dtype: Dtype, num_threads: int = 0
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Compile the forward pass for one shape.

    Args:
        tensors: See `tasks.weights`.
        batch_size: Images in one pass.
        image_size: Side `S` of the images.
        dtype: Number format of the convolutions.
        num_threads: Threads of a pass, which change no bit of it; 0 takes one per core.

    Returns:
        `(batch_size, S, S, 3)` uint8 RGB to `(batch_size, S // 32, S // 32, 512)` float32.

    Raises:
        EngineError: OpenVINO is not installed.
    """
    compiled = compile_network(
        network(tensors, batch_size=batch_size, image_size=image_size, dtype=dtype),
        dtype,
        num_threads=num_threads,
    )
    request = compiled.create_infer_request()

    def forward(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        (maps,) = request.infer([pixels]).values()
        return np.ascontiguousarray(maps.transpose(0, 2, 3, 1))

    return forward


def compile_network(model: Any, dtype: Dtype, *, num_threads: int = 0) -> Any:
    """Compile a network for the processor, one pass at a time."""
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": num_threads,
        "INFERENCE_PRECISION_HINT": _PRECISION_OF[dtype],
        # Threads that are tied to cores cannot make room for those that decode, and those of two
        # processes would be tied to the same ones.
        "ENABLE_CPU_PINNING": False,
    }
    return _openvino().Core().compile_model(model, "CPU", settings)


def network(tensors: Tensors, *, batch_size: int, image_size: int, dtype: Dtype) -> Any:
    """Describe the network as an `openvino.Model`; its outputs are in (N, C, H, W).

    The input of each convolution bears the layer's name, so that its values can be asked for.
    """
    ov = _openvino()
    ops = ov.opset8
    pixels = ops.parameter([batch_size, image_size, image_size, 3], np.uint8)
    channels_first = ops.transpose(ops.convert(pixels, np.float32), np.array([0, 3, 1, 2]))
    maps = ops.subtract(channels_first, ops.constant(_RGB_MEANS))
    for layer in LAYERS:
        maps.set_friendly_name(layer)
        kernel = tensors[f"{layer}/kernel"].transpose(3, 2, 0, 1)
        if layer == LAYERS[0]:
            kernel = kernel[:, ::-1]  # the original network saw BGR
        weights = ops.constant(np.ascontiguousarray(kernel))
        if dtype == "int8" and layer in RANGES:
            maps = _rounded(maps, low=np.float32(0), high=np.float32(RANGES[layer]), levels=256)
            largest = np.abs(kernel).max(axis=(1, 2, 3), keepdims=True)
            weights = _rounded(weights, low=-largest, high=largest, levels=255)
        maps = ops.convolution(maps, weights, [1, 1], [1, 1], [1, 1], [1, 1])
        maps = ops.relu(ops.add(maps, ops.constant(tensors[f"{layer}/bias"].reshape(1, -1, 1, 1))))
        if layer in _LAST_OF_BLOCKS:
            maps = _halved(maps)
    return ov.Model([maps], [pixels], "vgg16")


def _rounded(values: Any, *, low: Any, high: Any, levels: int) -> Any:
    return _openvino().opset8.fake_quantize(values, low, high, low, high, levels)


def _halved(maps: Any) -> Any:
    # Later versions of this operation give the positions of the maxima too.
    return _openvino().opset1.max_pool(maps, [2, 2], [0, 0], [0, 0], [2, 2])


def _openvino() -> Any:
    try:
        return importlib.import_module("openvino")
    except ImportError:
        raise EngineError(
            "engine openvino needs the package openvino, which is not installed: "
            "pip install 'image-dedup[openvino]', or use engine tensorflow"
        ) from None
