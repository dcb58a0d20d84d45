"""Region and masks: what of an upright image becomes the square, however the image is stored."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks.images import DecodedImage, Polygon, Region, decode_image, make_thumbnail
from tests.orientations import STORED

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
GREY = (128, 128, 128)
QUADRANTS: dict[Region, tuple[int, int, int]] = {
    (0.0, 0.0, 0.5, 0.5): RED,
    (0.5, 0.0, 1.0, 0.5): GREEN,
    (0.0, 0.5, 0.5, 1.0): BLUE,
    (0.5, 0.5, 1.0, 1.0): WHITE,
}


def stored(image: Image.Image, orientation: int = 1, file_format: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    transposition = STORED[orientation]
    image = image if transposition is None else image.transpose(transposition)
    file = io.BytesIO()
    image.save(file, file_format, exif=exif.tobytes(), quality=95)
    return file.getvalue()


def quadrants(width: int = 120, height: int = 80) -> Image.Image:
    image = Image.new("RGB", (width, height))
    for (left, top, right, bottom), colour in QUADRANTS.items():
        box = (left * width, top * height, right * width, bottom * height)
        image.paste(colour, tuple(round(side) for side in box))
    return image


def decoded(content: bytes, **view: object) -> DecodedImage:
    return decode_image(content, image_size=32, max_pixels=10_000_000, **view)  # type: ignore[arg-type]


def corner(region: Region, *, inset: float = 0.0) -> Polygon:
    left, top, right, bottom = region
    left, top, right, bottom = left + inset, top + inset, right - inset, bottom - inset
    return ((left, top), (right, top), (right, bottom), (left, bottom))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(("region", "colour"), QUADRANTS.items())
def test_region_is_one_of_the_upright_image(
    region: Region, colour: tuple[int, int, int], orientation: int, file_format: str
) -> None:
    found = decoded(stored(quadrants(), orientation, file_format), region=region)

    assert (found.width, found.height) == (120, 80)
    # JPEG's colours bleed by a block where two of them meet.
    inner = found.pixels[:24, :24] if region[0] == 0 else found.pixels[:24, 8:]
    inner = inner if region[1] == 0 else found.pixels[8:, 8:24]
    assert np.abs(inner.astype(int) - colour).max() <= (0 if file_format == "PNG" else 3)


@pytest.mark.parametrize("orientation", STORED)
def test_mask_is_painted_in_the_upright_image(orientation: int) -> None:
    top_right, *_ = [corner(region) for region, colour in QUADRANTS.items() if colour == GREEN]
    found = decoded(stored(quadrants(), orientation), masks=(top_right,))

    assert (found.pixels[:15, 17:] == GREY).all()
    assert (found.pixels[:15, :15] == RED).all()
    assert (found.pixels[17:, :15] == BLUE).all()
    assert (found.pixels[17:, 17:] == WHITE).all()


def test_mask_inside_a_region_is_where_it_is_in_the_image() -> None:
    bottom_left = (0.0, 0.5, 0.5, 1.0)
    found = decoded(stored(quadrants()), region=(0.0, 0.5, 1.0, 1.0), masks=(corner(bottom_left),))

    assert (found.pixels[:, :15] == GREY).all()
    assert (found.pixels[:, 17:] == WHITE).all()


def test_triangle_covers_half_of_its_rectangle() -> None:
    white = Image.new("RGB", (320, 320), WHITE)
    found = decoded(stored(white), masks=(((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)),))

    assert (found.pixels == GREY).all(axis=2).mean() == pytest.approx(0.5, abs=0.05)
    assert found.pixels[0, 0].tolist() == list(GREY)
    assert found.pixels[31, 31].tolist() == list(WHITE)


def test_thumbnail_shows_the_whole_image_and_nothing_painted() -> None:
    content = stored(quadrants(), 6)
    region = (0.0, 0.0, 0.5, 0.5)
    found = decoded(content, region=region, masks=(corner(region),))

    assert found.thumbnail == make_thumbnail(content, max_pixels=10_000_000)


def test_sharpness_is_that_of_the_region() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    image = Image.new("RGB", (200, 100), GREY)
    image.paste(Image.fromarray(noise), (0, 0))
    left, right = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0))

    assert decoded(stored(image), region=left).sharpness > 0.01
    assert decoded(stored(image), region=right).sharpness == 0.0


@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpeg_is_decoded_so_that_its_region_keeps_its_pixels(orientation: int) -> None:
    """Stripes one pixel wide, which are grey at any reduced scale."""
    stripes = np.zeros((2_000, 3_000, 3), np.uint8)
    stripes[:, ::2] = 255
    content = stored(Image.fromarray(stripes), orientation, "JPEG")
    region = (0.5, 0.5, 0.5 + 32 / 3_000, 0.5 + 32 / 2_000)

    assert decoded(content, region=region).pixels.std() > 100
    assert decoded(content).pixels.std() < 10


@st.composite
def regions(draw: st.DrawFn) -> Region:
    left, right = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    top, bottom = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    right, bottom = max(right, min(1.0, left + 1e-9)), max(bottom, min(1.0, top + 1e-9))
    return (min(left, 1 - 1e-9), min(top, 1 - 1e-9), right, bottom)


@given(region=regions(), size=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_any_region_of_any_image_has_a_pixel(region: Region, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, RED)

    assert (decoded(stored(image, file_format="PNG"), region=region).pixels == RED).all()


@given(
    region=regions(),
    mask=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=6),
    orientation=st.sampled_from(sorted(STORED)),
)
def test_a_view_does_not_depend_on_how_the_image_is_stored(
    region: Region, mask: list[tuple[float, float]], orientation: int
) -> None:
    view = {"region": region, "masks": (tuple(mask),)}
    upright = decoded(stored(quadrants(), 1), **view)
    turned = decoded(stored(quadrants(), orientation), **view)

    np.testing.assert_array_equal(turned.pixels, upright.pixels)
    assert turned.sharpness == upright.sharpness
