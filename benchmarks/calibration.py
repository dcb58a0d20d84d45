"""Where the 8-bit ranges of `tasks.vgg16_openvino` come from: `python -m benchmarks.calibration`.

The photographs are those of the demo's night, which ship inside scikit-image and scikit-learn, so
that anybody can measure the ranges again without a network.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.demo_night import REPEATED_SCENES, UNIQUE_SCENES
from tasks.images import decode_image
from tasks.vgg16_openvino import RANGES, compile_network, network
from tasks.weights import Tensors, find_weights

PHOTOS = (*REPEATED_SCENES.values(), *UNIQUE_SCENES.values())

SHARE = 0.7
"""Where a range ends, as a share of the largest value seen: to cut the rarest values off costs less
than wider steps for all others."""


def main() -> int:
    """Print the ranges, measured now and as they are used."""
    measured = ranges_of(find_weights(None), map(pixels_of, PHOTOS))
    for layer, used in RANGES.items():
        print(f"{layer}  {measured[layer]:7.1f} measured  {used:7.1f} used")
    return 0


def pixels_of(photo: Path) -> NDArray[np.uint8]:
    """The `(224, 224, 3)` uint8 RGB square of a photograph."""
    return decode_image(photo.read_bytes(), image_size=224, max_pixels=10**8).pixels


def ranges_of(tensors: Tensors, squares: Iterable[NDArray[np.uint8]]) -> dict[str, float]:
    """Measure the end of each 8-bit range, layer by layer, in float32.

    Args:
        tensors: The weights.
        squares: `(224, 224, 3)` uint8 RGB images.
    """
    model = network(tensors, batch_size=1, image_size=224, dtype="float32")
    inputs = {op.get_friendly_name(): op.output(0) for op in model.get_ops()}
    model.add_outputs([inputs[layer] for layer in RANGES])
    compiled = compile_network(model, "float32")
    largest = np.zeros(len(RANGES))
    for square in squares:
        _, *maps = compiled([square[None]]).values()
        largest = np.maximum(largest, [values.max() for values in maps])
    return dict(zip(RANGES, (SHARE * largest).tolist(), strict=True))


if __name__ == "__main__":
    sys.exit(main())
