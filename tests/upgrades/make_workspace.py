"""Makes the workspace of a release that later ones are tested against, as an archive.

    .venv/bin/python -m tests.upgrades.make_workspace tests/upgrades/schema-3.tar.gz

Run it once for each schema version, with the code of the release, and keep the archive for ever.
It lies on S3 because manifests and journals name places, and there a place has the same name on
every machine.
"""

import io
import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path

# A home of its own; read when Prefect is imported.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="dedup-upgrade-")
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"

from PIL import Image

from benchmarks.demo_night import REPEATED_SCENES
from config import ApplyConfig, load_config
from flows.acting import apply_manifest
from flows.dedup import dedup
from flows.reviewing import review_manifest
from flows.temporary_server import ensure_server
from tasks import storage
from tasks.approvals import record_decision
from tasks.calibrations import (
    Answer,
    Calibration,
    calibration_url,
    write_calibration,
)
from tasks.manifests import read_manifest
from tasks.summary import Summary
from tests.one_bucket import as_client
from tests.s3_server import run_s3_server

BUCKET = "s3://previous-release"
WORKSPACE = f"{BUCKET}/workspace"
SIDE = 96

MONDAY = {"coffee": 3, "china": 2, "astronaut": 1}
TUESDAY = {"coffee": 2, "rocket": 3, "flower": 1, "chelsea": 2}


def main(archive: str) -> None:
    """Run two nights on a fresh S3 server and pack the bucket."""
    ensure_server(meanwhile=lambda: None)
    with (
        tempfile.TemporaryDirectory() as folder,
        run_s3_server(Path(folder)) as server,
        as_client(server.admin),
    ):
        storage.filesystem(BUCKET)[0].mkdir(BUCKET.removeprefix("s3://"))
        monday = run_night("monday", MONDAY, first_quality=90)
        applied = apply_manifest(ApplyConfig(manifest_url=monday.manifest_url, execute=True))
        assert applied.num_done == 3
        tuesday = run_night("tuesday", TUESDAY, first_quality=80)
        say_something_of(tuesday)
        pack(archive)


def run_night(name: str, scenes: dict[str, int], *, first_quality: int) -> Summary:
    """Lay out a night of small photographs, each in several qualities, and decide about it."""
    for scene, times in scenes.items():
        photo = Image.open(REPEATED_SCENES[scene]).convert("RGB").resize((SIDE, SIDE))
        for number in range(times):
            content = io.BytesIO()
            photo.save(content, "JPEG", quality=first_quality - 5 * number)
            storage.publish_bytes(f"{BUCKET}/{name}/{scene}/{number}.jpg", content.getvalue())
    features = {"image_size": 32, "dtype": "float32"}
    places = {"source_url": f"{BUCKET}/{name}", "workspace_url": WORKSPACE}
    return dedup(load_config(None, {**places, "features": features}))


def say_something_of(night: Summary) -> None:
    """Approve a run, say that two of its images show the same, and review it all the same."""
    manifest = read_manifest(night.manifest_url)
    record_decision(manifest, is_approved=True, by="a person", comment="looks right")
    first, second = (f"{BUCKET}/tuesday/rocket/{number}.jpg" for number in (0, 1))
    answer = Answer(a=first, b=second, partition="", distance=0.03125, said="same")
    answers = Calibration(run_id=night.run_id, eps=night.eps, partitions=(), answers=(answer,))
    write_calibration(calibration_url(manifest.url), answers)
    review = {
        "format": "image-dedup review 1",
        "run_id": night.run_id,
        "manifest_digest": manifest.digest,
        "choices": [{"choice": "not a duplicate", "url": second}],
    }
    review_url = f"{BUCKET}/workspace/review.json"
    storage.publish_bytes(review_url, json.dumps(review).encode())
    review_manifest(night.manifest_url, review_url)


def pack(archive: str) -> None:
    """Pack every object of the bucket, but what is there for browsers and queries alone."""
    with tarfile.open(archive, "w:gz") as tar:
        for file in storage.list_files(BUCKET):
            if "/report/" in file.url or file.url.endswith(("index.ann", "items.parquet")):
                continue
            content = storage.read_bytes(file.url)
            entry = tarfile.TarInfo(file.relative_path)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    main(sys.argv[1])
