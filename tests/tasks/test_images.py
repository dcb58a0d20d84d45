"""Decoding: every kind of image becomes the same upright square, every broken one a clear word."""

import io
import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import skimage
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageFilter
from scipy import ndimage

from tasks.errors import UnreadableImageError
from tasks.images import (
    DECODER,
    DecodedImage,
    _one_line,
    as_browsers_show,
    decode_image,
    laplacian_variance,
    make_thumbnail,
    sharpness_of,
)
from tests.orientations import STORED

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]

MAX_PIXELS = 89_478_485
ORIENTATION_TAG = 0x0112
WHITE, RED, BLUE = (255, 255, 255), (255, 0, 0), (0, 0, 255)


@lru_cache
def photo(name: str = "chelsea.png") -> Image.Image:
    return Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def decoded(content: bytes, image_size: int = 64) -> DecodedImage:
    return decode_image(content, image_size=image_size, max_pixels=MAX_PIXELS)


def error_of(content: bytes) -> str:
    with pytest.raises(UnreadableImageError) as error:
        decoded(content)
    return str(error.value)


def differences(a: DecodedImage, b: DecodedImage) -> np.ndarray:
    return np.abs(a.pixels.astype(int) - b.pixels.astype(int))


def colour_of(content: bytes) -> tuple[int, ...]:
    """The one colour of a flat image."""
    (colour,) = {tuple(pixel) for pixel in decoded(content).pixels.reshape(-1, 3).tolist()}
    return colour


def flat(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (5, 4), colour)


def flat_palette(mode: str, alpha: int | None = None) -> Image.Image:
    """An image of the third colour of a palette, which is (10, 20, 30)."""
    image = Image.new("P", (5, 4), 2)
    image.putpalette([0, 0, 0, 255, 255, 255, 10, 20, 30])
    if mode == "PA":
        image = image.convert("PA")
        image.putalpha(255 if alpha is None else alpha)
    return image


def of_samples(*samples: float, dtype: type = np.float32) -> Image.Image:
    return Image.fromarray(np.array([samples], dtype))


def test_decoded_image_is_a_square_with_the_size_it_had() -> None:
    image = decoded(encoded(photo()), image_size=96)

    assert image.pixels.shape == (96, 96, 3)
    assert image.pixels.dtype == np.uint8
    assert (image.width, image.height) == (451, 300)
    assert image.sharpness > 0


def test_aspect_ratio_is_squeezed_and_nothing_cut_off() -> None:
    wide = Image.new("RGB", (400, 10), RED)
    wide.paste(BLUE, (200, 0, 400, 10))

    pixels = decoded(encoded(wide)).pixels

    assert (pixels[:, :31] == RED).all()
    assert (pixels[:, 33:] == BLUE).all()


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        pytest.param(encoded(flat("1", 1)), WHITE, id="1"),
        pytest.param(encoded(flat("L", 100)), (100, 100, 100), id="L"),
        pytest.param(encoded(flat("L", 100), transparency=100), WHITE, id="L transparent"),
        pytest.param(encoded(flat("RGB", (10, 20, 30))), (10, 20, 30), id="RGB"),
        pytest.param(
            encoded(flat("RGB", (10, 20, 30)), transparency=(10, 20, 30)),
            WHITE,
            id="RGB transparent",
        ),
        pytest.param(encoded(flat_palette("P")), (10, 20, 30), id="P"),
        pytest.param(encoded(flat_palette("P"), transparency=2), WHITE, id="P transparent"),
        pytest.param(encoded(flat_palette("P"), transparency=1), (10, 20, 30), id="P other colour"),
        pytest.param(encoded(flat_palette("P"), "GIF", transparency=2), WHITE, id="P GIF"),
        pytest.param(encoded(flat_palette("PA"), "TIFF"), (10, 20, 30), id="PA"),
        pytest.param(encoded(flat_palette("PA", 0), "TIFF"), WHITE, id="PA transparent"),
        pytest.param(encoded(flat("LA", (100, 255))), (100, 100, 100), id="LA"),
        pytest.param(encoded(flat("LA", (100, 0))), WHITE, id="LA transparent"),
        pytest.param(encoded(flat("LA", (0, 128))), (127, 127, 127), id="LA half"),
        pytest.param(encoded(flat("RGBA", (10, 20, 30, 255))), (10, 20, 30), id="RGBA"),
        pytest.param(encoded(flat("RGBA", (10, 20, 30, 0))), WHITE, id="RGBA transparent"),
        pytest.param(encoded(flat("RGBA", (0, 0, 255, 128))), (127, 127, 255), id="RGBA half"),
        pytest.param(encoded(flat("CMYK", (0, 255, 255, 0)), "TIFF"), RED, id="CMYK"),
        pytest.param(encoded(flat("CMYK", (0, 0, 0, 255)), "TIFF"), (0, 0, 0), id="CMYK black"),
        pytest.param(encoded(flat("YCbCr", (255, 128, 128)), "TIFF"), WHITE, id="YCbCr"),
        pytest.param(encoded(flat("I;16", 65535)), WHITE, id="I;16 white"),
        pytest.param(encoded(flat("I;16", 25700)), (100, 100, 100), id="I;16 grey"),
        pytest.param(encoded(flat("I;16", 100)), (0, 0, 0), id="I;16 nearly black"),
        pytest.param(encoded(flat("I;16B", 25700), "TIFF"), (100, 100, 100), id="I;16B"),
        pytest.param(encoded(flat("I", 70_000), "TIFF"), (0, 0, 0), id="I flat"),
        pytest.param(encoded(flat("F", 0.5), "TIFF"), (0, 0, 0), id="F flat"),
        pytest.param(encoded(flat("F", np.nan), "TIFF"), (0, 0, 0), id="F without a number"),
    ],
)
def test_flat_image_of_any_mode_has_its_colour(content: bytes, colour: tuple[int, ...]) -> None:
    assert colour_of(content) == colour


@pytest.mark.parametrize(
    ("image", "greys"),
    [
        (of_samples(-1000, 0, 1000, dtype=np.int32), [0, 128, 255]),
        (of_samples(0, 70_000, dtype=np.int32), [0, 255]),
        (of_samples(0.0, 0.2, 1.0), [0, 51, 255]),
        (of_samples(-2.0, 0.0, 2.0), [0, 128, 255]),
        (of_samples(np.nan, 0.2, 1.0), [0, 0, 255]),
    ],
)
def test_samples_without_an_agreed_range_are_stretched(
    image: Image.Image, greys: list[int]
) -> None:
    wide = image.resize((64 * image.width, 64), Image.Resampling.NEAREST)

    pixels = decoded(encoded(wide, "TIFF"), image_size=64 * image.width).pixels

    assert pixels[32, 32::64, 0].tolist() == greys


@pytest.mark.parametrize("infinities", [(np.inf,), (-np.inf,), (np.inf, -np.inf)])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_infinite_samples_do_not_hide_the_others(infinities: tuple[float, ...]) -> None:
    samples = np.asarray(photo().convert("L")).astype(np.float32)
    expected = decoded(encoded(Image.fromarray(samples), "TIFF"))
    samples[0, : len(infinities)] = infinities

    found = decoded(encoded(Image.fromarray(samples), "TIFF"))

    assert differences(found, expected).mean() < 1


@pytest.mark.parametrize(
    ("mode", "file_format", "tolerance"),
    [
        ("L", "PNG", 0),
        ("P", "PNG", 0),
        ("P", "GIF", 0),
        ("PA", "TIFF", 0),
        ("LA", "PNG", 0),
        ("RGBA", "PNG", 0),
        ("RGBA", "TIFF", 0),
        ("CMYK", "TIFF", 0),
        ("CMYK", "JPEG", 1),
        ("YCbCr", "JPEG", 1),
        ("RGB", "JPEG", 1),
        ("RGB", "BMP", 0),
        ("RGB", "PPM", 0),
        ("RGB", "WEBP", 2),
        ("RGB", "AVIF", 2),
        ("RGB", "JPEG2000", 0),
        ("1", "PNG", 0),
    ],
)
def test_photograph_of_any_mode_and_format_is_the_same(
    mode: str, file_format: str, tolerance: float
) -> None:
    image = photo().convert(mode)
    expected = decoded(encoded(image.convert("RGB")))

    found = decoded(encoded(image, file_format))

    assert (found.width, found.height) == (451, 300)
    assert differences(found, expected).mean() <= tolerance


def test_sixteen_bit_photograph_is_the_same() -> None:
    grey = photo().convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)

    assert differences(decoded(encoded(deep)), decoded(encoded(grey))).max() == 0


def test_colour_mode_without_a_meaning_is_unreadable() -> None:
    lab = encoded(Image.new("LAB", (4, 4)), "TIFF")

    assert error_of(lab) == "colour mode LAB is not supported"


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    return exif.tobytes()


def stored_photo(orientation: int, file_format: str, **options: object) -> bytes:
    transposition = STORED[orientation]
    image = photo() if transposition is None else photo().transpose(transposition)
    assert image.size == ((451, 300) if orientation <= 4 else (300, 451))
    return encoded(image, file_format, exif=exif_of(orientation), **options)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("file_format", "options", "largest", "mean"),
    [
        ("PNG", {}, 1, 0.2),
        ("WEBP", {"lossless": True}, 1, 0.2),
        ("JPEG", {"quality": 95}, 15, 1.0),
        ("AVIF", {"quality": 95}, 15, 1.0),
    ],
)
def test_every_orientation_gives_the_same_upright_image(
    file_format: str, options: dict[str, object], largest: int, mean: float, orientation: int
) -> None:
    found = decoded(stored_photo(orientation, file_format, **options))

    expected = decoded(encoded(photo()))
    assert (found.width, found.height) == (451, 300)
    assert differences(found, expected).max() <= largest
    assert differences(found, expected).mean() <= mean
    assert found.sharpness == pytest.approx(expected.sharpness, rel=0.1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_is_turned_once(orientation: int) -> None:
    found = decoded(stored_photo(orientation, "TIFF"))

    assert (found.width, found.height) == (451, 300)
    assert differences(found, decoded(encoded(photo()))).max() <= 1


@pytest.mark.parametrize("orientation", STORED)
def test_heif_is_turned_once(orientation: int) -> None:
    pytest.importorskip("pillow_heif")

    found = decoded(stored_photo(orientation, "HEIF", quality=95))

    assert (found.width, found.height) == (451, 300)
    assert differences(found, decoded(encoded(photo()))).mean() < 2


ASCII, SHORT = 2, 3


def exif_entry(value_type: int, count: int, value: bytes) -> bytes:
    """EXIF that holds nothing but an orientation of any type."""
    entry = struct.pack("<HHHI", 1, ORIENTATION_TAG, value_type, count) + value
    return b"Exif\x00\x00" + b"II*\x00" + struct.pack("<I", 8) + entry + bytes(4)


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\x00\x00",
        b"Exif\x00\x00neither II nor MM",
        b"Exif\x00\x00" + exif_of(6)[6:14],
        exif_of(0),
        exif_of(9),
        exif_of(65_535),
        exif_entry(ASCII, 3, b"up\0\0"),
        exif_entry(SHORT, 1_000_000, b"\6\0\6\0"),
    ],
)
def test_broken_exif_leaves_the_image_as_it_is(exif: bytes) -> None:
    found = decoded(encoded(photo(), "JPEG", quality=95, exif=exif))

    expected = decoded(encoded(photo(), "JPEG", quality=95))
    assert (found.width, found.height) == (451, 300)
    assert found.pixels.tobytes() == expected.pixels.tobytes()


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("GIF", {}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})],
)
def test_first_frame_of_an_animation_counts(file_format: str, options: dict[str, object]) -> None:
    red, blue = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)

    content = encoded(red, file_format, save_all=True, append_images=[blue, blue], **options)

    assert Image.open(io.BytesIO(content)).n_frames >= 2
    assert colour_of(content) == RED


def test_empty_file_is_unreadable() -> None:
    assert error_of(b"") == "empty file"


@pytest.mark.parametrize(
    "content",
    [
        np.random.default_rng(0).bytes(5_000),
        b"\x00",
        b"<!doctype html><title>404 Not Found</title>",
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_what_is_no_image_is_unreadable(content: bytes) -> None:
    assert error_of(content) == "not an image in a known format"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_image_is_unreadable(file_format: str, share: float) -> None:
    content = encoded(photo(), file_format)

    error_of(content[: int(len(content) * share)])


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_error_of_a_truncated_image_says_so(file_format: str) -> None:
    content = encoded(photo(), file_format)

    assert error_of(content[: len(content) // 2]).startswith("OSError: image file is truncated")


def png_that_claims(width: int, height: int) -> bytes:
    """The header of a PNG, and not one pixel of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height", "error"),
    [
        (10_000, 10_000, "10000 x 10000 pixels, at most 89478485 are allowed"),
        (89_478_486, 1, "89478486 x 1 pixels, at most 89478485 are allowed"),
        (50_000, 50_000, "DecompressionBombError: Image size (2500000000 pixels) exceeds limit"),
        (2**31 - 1, 2**31 - 1, "DecompressionBombError: Image size (4611686014132420609 pixels)"),
    ],
)
def test_header_of_a_decompression_bomb_is_refused(width: int, height: int, error: str) -> None:
    assert error_of(png_that_claims(width, height)).startswith(f"decompression bomb: {error}")


def test_largest_allowed_image_is_read_and_one_more_pixel_is_not() -> None:
    content = encoded(photo().resize((40, 30)))

    assert decode_image(content, image_size=32, max_pixels=1_200).width == 40
    for read in (
        lambda: decode_image(content, image_size=32, max_pixels=1_199),
        lambda: make_thumbnail(content, max_pixels=1_199),
    ):
        with pytest.raises(UnreadableImageError) as error:
            read()
        assert str(error.value) == "decompression bomb: 40 x 30 pixels, at most 1199 are allowed"


SMALL = {
    file_format: encoded(photo().resize((24, 16)), file_format)
    for file_format in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
}


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    content = bytearray(SMALL[draw(st.sampled_from(sorted(SMALL)))])
    for _ in range(draw(st.integers(1, 6))):
        # Most of what can go wrong is in the header.
        reach = draw(st.sampled_from([32, 128, len(content)]))
        position = draw(st.integers(0, min(reach, len(content)) - 1))
        content[position] = draw(st.sampled_from([0, 1, 127, 255]))
    return bytes(content[: draw(st.sampled_from([len(content), len(content) // 2, 40]))])


def outcome_of(content: bytes) -> bytes | str:
    try:
        return decode_image(content, image_size=32, max_pixels=100_000).pixels.tobytes()
    except UnreadableImageError as error:
        return str(error)


@given(content=damaged_files())
def test_damaged_file_is_decoded_or_unreadable_and_the_same_each_time(content: bytes) -> None:
    outcome = outcome_of(content)

    assert outcome_of(content) == outcome
    if isinstance(outcome, str):
        assert 0 < len(outcome) <= 200
        assert "\n" not in outcome
        assert "0x" not in outcome


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError("cannot identify <_io.BytesIO object at 0x7f3c>"),
            "OSError: cannot identify <_io.BytesIO object>",
        ),
        (ValueError("two\n  lines\tand tabs "), "ValueError: two lines and tabs"),
        (OSError(), "OSError"),
        (OSError("x" * 500), "OSError: " + "x" * 191),
    ],
)
def test_error_is_one_short_line_without_addresses(error: Exception, message: str) -> None:
    assert _one_line(error) == message


@pytest.mark.parametrize(
    ("luma", "variance"),
    [
        ([[7] * 5] * 4, 0),
        ([[0, 10, 20, 30]] * 4, 0),
        ([[0, 0, 0], [0, 255, 0], [0, 0, 0]], 0),
        ([[0, 0, 1, 1]] * 4, 1),
        ([[0, 0, 255, 255]] * 4, 255**2),
        ([[0, 255, 0, 255], [255, 0, 255, 0]] * 2, 1020**2),
    ],
)
def test_variance_of_the_laplacian_of_known_images(luma: list[list[int]], variance: float) -> None:
    assert laplacian_variance(np.array(luma, np.uint8)) == variance


@given(luma=arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=3, max_side=12)))
def test_variance_of_the_laplacian_is_that_of_scipys_filter(luma: np.ndarray) -> None:
    laplacian = ndimage.laplace(luma.astype(np.int64))[1:-1, 1:-1]

    assert laplacian_variance(luma) == pytest.approx(laplacian.var(), rel=1e-6, abs=1e-6)


def test_sharpness_of_known_images() -> None:
    assert sharpness_of(np.full((5, 5), 200, np.uint8)) == 0
    # The Laplacian is 1 and -1 in turn, the luma 0 and 1.
    assert sharpness_of(np.array([[0, 0, 1, 1]] * 4, np.uint8)) == 4
    assert sharpness_of(np.array([[0, 0, 200, 200]] * 4, np.uint8)) == 4


@given(
    luma=arrays(np.uint8, (6, 7), elements=st.integers(0, 85)),
    factor=st.integers(1, 2),
    offset=st.integers(0, 85),
)
def test_sharpness_does_not_depend_on_the_exposure(
    luma: np.ndarray, factor: int, offset: int
) -> None:
    brighter = (luma * factor + offset).astype(np.uint8)

    assert sharpness_of(brighter) == pytest.approx(sharpness_of(luma), rel=1e-6)


@pytest.mark.parametrize("name", ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"])
def test_the_more_a_photograph_is_blurred_the_less_sharp_it_is(name: str) -> None:
    sharpness = [
        decoded(encoded(photo(name).filter(ImageFilter.GaussianBlur(radius)))).sharpness
        for radius in (0, 1, 2, 4)
    ]

    assert sharpness == sorted(set(sharpness), reverse=True)


@pytest.mark.parametrize("image_size", [64, 224])
@pytest.mark.parametrize("name", ["astronaut.png", "coffee.png", "rocket.jpg", "grass.png"])
def test_large_jpeg_decoded_at_reduced_scale_is_nearly_the_full_one(
    name: str, image_size: int
) -> None:
    large = photo(name).resize((3_000, 2_000), Image.Resampling.LANCZOS)
    jpeg = encoded(large, "JPEG", quality=90)
    full = encoded(Image.open(io.BytesIO(jpeg)), "BMP")

    found, expected = decoded(jpeg, image_size), decoded(full, image_size)

    assert (found.width, found.height) == (3_000, 2_000)
    # Measured: 0.06 to 0.50 of 255 in the mean, 5 at most.
    assert differences(found, expected).mean() < 0.6
    assert differences(found, expected).max() <= 8


@pytest.mark.timeout(120)
def test_huge_images_take_turns_even_after_one_that_is_broken() -> None:
    huge = encoded(photo().convert("L").resize((5_000, 4_000)), "JPEG")
    expected = decoded(huge)

    error_of(huge[: len(huge) // 2])
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(decoded, [huge] * 3))

    assert {image.pixels.tobytes() for image in found} == {expected.pixels.tobytes()}


@pytest.mark.parametrize(
    ("size", "small"),
    [
        ((3_000, 2_000), (160, 107)),
        ((2_000, 3_000), (107, 160)),
        ((161, 161), (160, 160)),
        ((100, 50), (100, 50)),
        ((1, 1), (1, 1)),
        ((4_000, 1), (160, 1)),
    ],
)
@pytest.mark.parametrize("file_format", ["JPEG", "BMP"])
def test_thumbnail_is_a_jpeg_of_at_most_160_pixels(
    file_format: str, size: tuple[int, int], small: tuple[int, int]
) -> None:
    content = encoded(photo().resize(size), file_format)

    thumbnail = Image.open(io.BytesIO(make_thumbnail(content, max_pixels=MAX_PIXELS)))

    assert (thumbnail.format, thumbnail.mode, thumbnail.size) == ("JPEG", "RGB", small)


@pytest.mark.parametrize("orientation", STORED)
def test_thumbnail_is_upright(orientation: int) -> None:
    content = make_thumbnail(stored_photo(orientation, "JPEG"), max_pixels=MAX_PIXELS)

    thumbnail = decoded(content)
    assert (thumbnail.width, thumbnail.height) == (160, 106)
    assert differences(thumbnail, decoded(encoded(photo()))).mean() < 4


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("image_size", [64, 224])
def test_decoding_makes_the_thumbnail_on_the_way(image_size: int, orientation: int) -> None:
    content = stored_photo(orientation, "JPEG")

    thumbnail = decoded(decoded(content, image_size).thumbnail)

    alone = decoded(make_thumbnail(content, max_pixels=MAX_PIXELS))
    assert (thumbnail.width, thumbnail.height) == (160, 106)
    assert differences(thumbnail, alone).mean() < 2


def test_thumbnail_of_a_transparent_image_is_white() -> None:
    content = make_thumbnail(encoded(flat("RGBA", (0, 0, 0, 0))), max_pixels=MAX_PIXELS)

    assert colour_of(content) == WHITE


@pytest.mark.parametrize("content", [b"", b"no image", encoded(photo(), "JPEG")[:5_000]])
def test_thumbnail_of_a_broken_image_is_unreadable(content: bytes) -> None:
    with pytest.raises(UnreadableImageError):
        make_thumbnail(content, max_pixels=MAX_PIXELS)


def test_decoder_names_the_versions_that_decode() -> None:
    assert re.fullmatch(r"pillow \d+\.\S+, pillow-heif (none|\d+\.\S+)", DECODER)


@pytest.mark.parametrize(
    ("file_format", "media_type"),
    [
        ("AVIF", "image/avif"),
        ("GIF", "image/gif"),
        ("JPEG", "image/jpeg"),
        ("MPO", "image/jpeg"),
        ("PNG", "image/png"),
        ("WEBP", "image/webp"),
    ],
)
def test_what_browsers_know_they_get_as_it_is(file_format: str, media_type: str) -> None:
    content = encoded(photo(), file_format)
    assert as_browsers_show(content, max_pixels=MAX_PIXELS) == (content, media_type)


@pytest.mark.parametrize("orientation", STORED)
def test_what_browsers_do_not_know_they_get_upright(orientation: int) -> None:
    content = stored_photo(orientation, "TIFF")
    shown, media_type = as_browsers_show(content, max_pixels=MAX_PIXELS)
    assert (media_type, Image.open(io.BytesIO(shown)).size) == ("image/jpeg", (451, 300))
    assert differences(decoded(shown), decoded(encoded(photo()))).mean() <= 2


def test_a_large_scan_is_shown_smaller() -> None:
    content = encoded(Image.new("I;16", (6_000, 3_000), 257 * 200), "TIFF")
    shown, _ = as_browsers_show(content, max_pixels=MAX_PIXELS)
    image = Image.open(io.BytesIO(shown))
    assert image.size == (2_560, 1_280)
    assert image.getpixel((0, 0)) == (200, 200, 200)


def test_browsers_get_no_bomb_and_nothing_but_images() -> None:
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        as_browsers_show(encoded(photo()), max_pixels=451 * 300 - 1)
    for content in (b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<!doctype html>"):
        with pytest.raises(UnreadableImageError):
            as_browsers_show(content, max_pixels=MAX_PIXELS)
