"""What fastdup would remove from a folder: `rival_fastdup.py SOURCE ANSWER`.

Run by the rivals' own Python, see benchmarks/rivals.py. Writes answer.json and features.npy into
the folder ANSWER, with fastdup's own settings, and removes nothing.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import fastdup
import numpy as np

THRESHOLD = 0.96
"""Smallest cosine similarity that joins two images: the default of `remove_duplicates`."""


def main(source: Path, answer: Path) -> None:
    work = answer / "fastdup"
    # The list of files that it would have unlinked, or 0 where nothing is like anything.
    removed = fastdup.remove_duplicates(str(source), work_dir=str(work), dry_run=True) or []
    names, features = fastdup.load_binary_feature(str(work / "atrain_features.dat"))
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    np.save(answer / "features.npy", features)
    found = {
        "version": version("fastdup"),
        "images": [below(source, name) for name in names],
        "removed": [below(source, name) for name in removed],
        "threshold": THRESHOLD,
    }
    (answer / "answer.json").write_text(json.dumps(found))


def below(source: Path, name: str) -> str:
    """The path below the source of a file that fastdup names from its working directory."""
    return Path(name).resolve().relative_to(source.resolve()).as_posix()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
