"""How fast images are moved into quarantine and back: python -m benchmarks.acting PLACE [IMAGES].

PLACE is an empty folder, a path or an S3 URL; the images in it are a few hundred bytes each, so
this measures the steps around an image and not the reading of large ones.
"""

import sys
import time

from config import ActingSettings, ApplyConfig
from flows.acting import apply_manifest, undo_apply
from tests.written_nights import write_night

IMAGES_PER_GROUP = 50
ACTING = ActingSettings(workers=32)


def main(place: str, num_images: int) -> None:
    """Lay out a night, apply its manifest, undo it, and print images a second."""
    groups = {
        f"keeper {group}.jpg": [f"camera {group}/{n}.jpg" for n in range(IMAGES_PER_GROUP - 1)]
        for group in range(-(-num_images // (IMAGES_PER_GROUP - 1)))
    }
    night = write_night(place, groups)
    config = ApplyConfig(manifest_url=night.manifest_url, execute=True, acting=ACTING)
    started = time.perf_counter()
    applied = apply_manifest(config)
    seconds = time.perf_counter() - started
    print(f"quarantine: {applied.num_done} images, {applied.num_done / seconds:.0f} a second")
    started = time.perf_counter()
    undone = undo_apply(str(applied.apply_id), night.workspace_url, ACTING)
    seconds = time.perf_counter() - started
    print(f"undo: {undone.num_done} images, {undone.num_done / seconds:.0f} a second")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10_000)
