"""What imagededup would remove from a folder: `rival_imagededup.py SOURCE ANSWER PHash|DHash`.

Run by the rivals' own Python, see benchmarks/rivals.py. Writes answer.json and features.npy into
the folder ANSWER, with imagededup's own settings, and removes nothing.
"""

import json
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np

NUM_BITS = 64
MAX_BITS = 10
"""Bits in which two images of a pair may differ: the default of `find_duplicates_to_remove`."""


def main(source: Path, answer: Path, method: str) -> None:
    hasher = getattr(hash_methods(), method)(verbose=False)
    hashes = hasher.encode_images(source, recursive=True)
    removed = hasher.find_duplicates_to_remove(encoding_map=hashes)
    np.save(answer / "features.npy", unit_vectors(list(hashes.values())))
    found = {
        "version": version("imagededup"),
        "images": list(hashes),
        "removed": removed,
        "threshold": 1 - 2 * MAX_BITS / NUM_BITS,
    }
    (answer / "answer.json").write_text(json.dumps(found))


def hash_methods() -> ModuleType:
    """The module of the hashes, which need neither the network nor the plots beside them.

    Importing those would take torch, torchvision and matplotlib.
    """
    for module, name in (
        ("imagededup.methods.cnn", "CNN"),
        ("imagededup.utils.models", "CustomModel"),
        ("imagededup.utils.plotter", "plot_duplicates"),
    ):
        sys.modules[module] = ModuleType(module)
        setattr(sys.modules[module], name, None)
    return import_module("imagededup.methods")


def unit_vectors(hashes: list[str]) -> np.ndarray:
    """Hexadecimal hashes as vectors whose cosine similarity is 1 - 2 · (differing bits) / 64."""
    bits = np.unpackbits(np.array([list(bytes.fromhex(text)) for text in hashes], np.uint8), axis=1)
    return (2 * bits.astype(np.float32) - 1) / np.float32(NUM_BITS) ** 0.5


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
