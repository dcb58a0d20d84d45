"""All image decoding: bytes in, the square of pixels that VGG16 sees out."""

import io
import math
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from tasks.errors import UnreadableImageError

try:
    import pillow_heif
except ImportError:
    _HEIF_VERSION = "none"
else:
    pillow_heif.register_heif_opener()
    _HEIF_VERSION = pillow_heif.__version__

# Pillow warns of odd files; what matters of it becomes an error row, the rest is noise at night.
warnings.filterwarnings("ignore", module=r"PIL\..*")

DECODER = f"pillow {PIL.__version__}, pillow-heif {_HEIF_VERSION}"
"""What decodes here. An image that one decoder cannot read may be readable for the next."""

Image.init()
# Pillow hands PostScript to Ghostscript, a program that nobody should feed strangers' files.
_FORMATS = tuple(sorted(set(Image.OPEN) - {"EPS"}))
_FORMATS_OF_16_BITS = frozenset({"PNG", "PPM"})

# What browsers show by themselves; Pillow calls a JPEG with a second picture in it MPO.
_MEDIA_TYPES = {
    "AVIF": "image/avif",
    "GIF": "image/gif",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
}

Region = tuple[float, float, float, float]
"""Left, top, right and bottom of a rectangle, as fractions of an upright image."""
Polygon = Sequence[tuple[float, float]]
"""x and y of each corner, as fractions of an upright image."""

WHOLE: Region = (0.0, 0.0, 1.0, 1.0)
NEUTRAL = 128
"""The middle grey, in each channel, of what is painted over."""

_SHARPNESS_SIZE = 448
_SHOWN_SIZE = 2_560
_THUMBNAIL_SIZE = 160
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS_THAT_TRANSPOSE = frozenset({5, 6, 7, 8})

# Four workers decoding four 80-megapixel images at once would need gigabytes, so they take turns.
_HUGE_PIXELS = 16_000_000
_one_huge_image = threading.Lock()


@dataclass(frozen=True)
class DecodedImage:
    """One image, ready for the model."""

    pixels: NDArray[np.uint8]
    """`(S, S, 3)` uint8 RGB, the upright region squeezed to the square, whatever its shape."""
    width: int
    """Width of the upright image in pixels, before any scaling."""
    height: int
    """Height of the upright image in pixels, before any scaling."""
    sharpness: float
    """See `sharpness_of`, measured on the region at 448 x 448; larger is sharper."""
    thumbnail: bytes
    """See `make_thumbnail`; of the whole image, whatever the region and the masks."""


def decode_image(
    content: bytes,
    *,
    image_size: int,
    max_pixels: int,
    region: Region = WHOLE,
    masks: Sequence[Polygon] = (),
) -> DecodedImage:
    """Decode anything Pillow can open into the square that VGG16 sees.

    The first frame of an animation counts. EXIF orientation is applied, transparency is laid over
    white, 16-bit and floating-point samples are scaled to 8 bits. Large JPEGs are decoded at a
    reduced scale at which the region still is at least twice the square's side; it moves a feature
    by at most 0.0005 in cosine distance.

    Args:
        content: The whole file.
        image_size: Side `S` of the square, in pixels.
        max_pixels: Largest width times height that is decoded.
        region: What of the upright image becomes the square; at least one pixel of it.
        masks: What of the upright image is painted in neutral grey before.

    Raises:
        UnreadableImageError: The bytes are no image, are truncated or broken, or hold more pixels
            than allowed. The message is the same for the same bytes.
    """
    with _readable(content, max_pixels) as image:
        return _decode(image, image_size, region, masks)


def make_thumbnail(content: bytes, *, max_pixels: int) -> bytes:
    """Make a small upright JPEG of an image, its longer side at most 160 pixels.

    Raises:
        UnreadableImageError: As for `decode_image`.
    """
    with _readable(content, max_pixels) as image, _turn(image):
        orientation = _orientation(image)
        image.draft(None, (2 * _THUMBNAIL_SIZE, 2 * _THUMBNAIL_SIZE))
        return _thumbnail(_to_rgb(image), image.size, orientation)


def as_browsers_show(content: bytes, *, max_pixels: int) -> tuple[bytes, str]:
    """Make an image into one that every browser shows.

    Args:
        content: The whole file.
        max_pixels: Largest width times height that is decoded, here or by the browser.

    Returns:
        The file itself and its media type, or an upright JPEG, its longer side at most 2,560
        pixels, where browsers do not know the format.

    Raises:
        UnreadableImageError: As for `decode_image`.
    """
    with _readable(content, max_pixels) as image:
        media_type = _MEDIA_TYPES.get(str(image.format))
        if media_type is not None:
            return content, media_type
        with _turn(image):
            orientation = _orientation(image)
            rgb = _to_rgb(image)
            rgb.thumbnail((_SHOWN_SIZE, _SHOWN_SIZE))
            jpeg = io.BytesIO()
            _upright(rgb, orientation).save(jpeg, "JPEG", quality=90)
    return jpeg.getvalue(), "image/jpeg"


@contextmanager
def _readable(content: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image, and say of everything that goes wrong with it that it is unreadable."""
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise UnreadableImageError(
                    f"decompression bomb: {width} x {height} pixels, "
                    f"at most {max_pixels} are allowed"
                )
            yield image
    except (UnreadableImageError, MemoryError):
        raise
    except PIL.UnidentifiedImageError:
        reason = "empty file" if not content else "not an image in a known format"
        raise UnreadableImageError(reason) from None
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f"decompression bomb: {_one_line(error)}") from None
    except Exception as error:  # Pillow's plugins raise nearly every type on broken bytes
        raise UnreadableImageError(_one_line(error)) from None


def _decode(
    image: Image.Image, image_size: int, region: Region, masks: Sequence[Polygon]
) -> DecodedImage:
    width, height = image.size
    orientation = _orientation(image)
    is_whole = region == WHOLE and not masks
    with _turn(image):
        smallest = max(2 * image_size, _SHARPNESS_SIZE)
        # A no-op for everything but JPEG.
        image.draft(None, _size_for_region(smallest, region, orientation))
        rgb = _to_rgb(image)
        # A small square is turned faster than a large image, but a region is one of upright images.
        part = rgb if is_whole else _cut_out(_upright(rgb, orientation), region, masks)
        square = part.resize((image_size, image_size), Image.Resampling.BILINEAR)
        luma = part.convert("L").resize(
            (_SHARPNESS_SIZE, _SHARPNESS_SIZE), Image.Resampling.BILINEAR
        )
    if orientation in _ORIENTATIONS_THAT_TRANSPOSE:
        width, height = height, width
    return DecodedImage(
        pixels=np.asarray(_upright(square, orientation) if is_whole else square),
        width=width,
        height=height,
        sharpness=sharpness_of(np.asarray(luma)),
        # The square has all that a thumbnail shows, and is a fraction of the work.
        thumbnail=_thumbnail(
            square if is_whole and image_size >= _THUMBNAIL_SIZE else rgb, image.size, orientation
        ),
    )


def unpainted(image_size: int, region: Region, masks: Sequence[Polygon]) -> NDArray[np.bool_]:
    """Tell which pixels of the square of a region show nothing of the masks.

    Args:
        image_size: Side `S` of the square, in pixels.
        region: As for `decode_image`.
        masks: As for `decode_image`.

    Returns:
        `(S, S)` bool.
    """
    left, top, right, bottom = region
    square = Image.new("L", (image_size, image_size), 255)
    pencil = ImageDraw.Draw(square)
    for mask in masks:
        corners = [
            ((x - left) / (right - left) * image_size, (y - top) / (bottom - top) * image_size)
            for x, y in mask
        ]
        pencil.polygon(corners, fill=0)
    # Where a pixel is part of both, it is neither.
    return np.asarray(square.filter(ImageFilter.MinFilter(3))) > 0


def _size_for_region(smallest: int, region: Region, orientation: int) -> tuple[int, int]:
    """The size of the image, as it is stored, at which its region has a smallest side."""
    left, top, right, bottom = region
    width, height = math.ceil(smallest / (right - left)), math.ceil(smallest / (bottom - top))
    return (height, width) if orientation in _ORIENTATIONS_THAT_TRANSPOSE else (width, height)


def _cut_out(upright: Image.Image, region: Region, masks: Sequence[Polygon]) -> Image.Image:
    """Cut the region out of an upright image and paint the masks in it."""
    width, height = upright.size
    left = min(round(region[0] * width), width - 1)
    top = min(round(region[1] * height), height - 1)
    right, bottom = round(region[2] * width), round(region[3] * height)
    part = upright.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    pencil = ImageDraw.Draw(part)
    for mask in masks:
        corners = [(x * width - left, y * height - top) for x, y in mask]
        pencil.polygon(corners, fill=(NEUTRAL, NEUTRAL, NEUTRAL))
    return part


def as_png(pixels: NDArray[np.uint8]) -> bytes:
    """Write pixels as a PNG.

    Args:
        pixels: `(H, W, 3)` uint8 RGB.
    """
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    return png.getvalue()


def from_png(content: bytes) -> NDArray[np.uint8]:
    """Read the `(H, W, 3)` uint8 RGB pixels of a PNG that `as_png` wrote.

    Raises:
        UnreadableImageError: It is damaged.
    """
    with _readable(content, max_pixels=Image.MAX_IMAGE_PIXELS or 0) as image:
        return np.asarray(image.convert("RGB"))


def _thumbnail(rgb: Image.Image, size: tuple[int, int], orientation: int) -> bytes:
    scale = min(1.0, _THUMBNAIL_SIZE / max(size))
    small = rgb.resize(
        (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))),
        Image.Resampling.BILINEAR,
        # A box filter does the most of it: a third of the time, and nobody sees it at this size.
        reducing_gap=1.0,
    )
    jpeg = io.BytesIO()
    _upright(small, orientation).save(jpeg, "JPEG", quality=70)
    return jpeg.getvalue()


def sharpness_of(luma: NDArray[np.uint8]) -> float:
    """Measure sharpness independently of exposure: variance of the Laplacian over that of the luma.

    Without the division the brighter of two equal frames would count as the sharper one.

    Args:
        luma: `(H, W)` uint8, both at least 3.

    Returns:
        At least 0, and 0 for a flat image; float32 precision.
    """
    variance = _variance(luma.astype(np.int16))
    return float(np.float32(laplacian_variance(luma) / variance)) if variance else 0.0


def laplacian_variance(luma: NDArray[np.uint8]) -> float:
    """Measure focus as the variance of the Laplacian (Pech-Pacheco et al., 2000).

    Args:
        luma: `(H, W)` uint8, both at least 3.

    Returns:
        The variance over the inner `(H-2, W-2)` pixels, 0 for a flat image; float32 precision.
    """
    y = luma.astype(np.int16)
    laplacian = -4 * y[1:-1, 1:-1]
    for neighbors in (y[:-2, 1:-1], y[2:, 1:-1], y[1:-1, :-2], y[1:-1, 2:]):
        laplacian += neighbors  # in place: fresh arrays would take most of the time
    return float(np.float32(_variance(laplacian)))


def _variance(values: NDArray[np.int16]) -> float:
    # In whole numbers, which is exact and a few times faster than numpy's var.
    total = int(values.sum(dtype=np.int64))
    squares = int(np.square(values, dtype=np.int32).sum(dtype=np.int64))
    return (squares * values.size - total * total) / values.size**2


def _turn(image: Image.Image) -> AbstractContextManager[object]:
    return _one_huge_image if image.width * image.height > _HUGE_PIXELS else nullcontext()


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns TIFFs by itself
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF does not make the pixels unreadable
        return 1


_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(square: Image.Image, orientation: int) -> Image.Image:
    transposition = _TRANSPOSITIONS.get(orientation)
    return square if transposition is None else square.transpose(transposition)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _to_eight_bits(image).convert("RGB")
    if image.mode == "LAB":
        raise UnreadableImageError("colour mode LAB is not supported")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    samples = np.asarray(image).astype(np.float64)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _FORMATS_OF_16_BITS):
        eight_bits = samples / 257.0
    else:
        # 32-bit and floating-point samples have no agreed range, so theirs is stretched; one
        # infinite sample must not stretch all others into black.
        finite = samples[np.isfinite(samples)]
        lowest, highest = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        samples = np.nan_to_num(samples, nan=lowest, posinf=highest, neginf=lowest)
        eight_bits = (samples - lowest) * (255.0 / (highest - lowest) if highest > lowest else 0.0)
    return Image.fromarray(np.rint(eight_bits).clip(0, 255).astype(np.uint8), mode="L")


def _one_line(error: Exception) -> str:
    # Addresses in memory would make the manifest differ from run to run.
    text = re.sub(r" at 0x[0-9a-f]+", "", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__
