"""What a row costs outside of embedding and searching: python -m benchmarks.rows [IMAGES] [FILES].

Lays out IMAGES files of a few bytes and a feature store of FILES files for them, runs each stage
that handles rows in a process of its own, and prints its seconds and its peak memory. Then the
store is compacted, and what reads it is measured again.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.synthetic_night import fill_store, lay_out_files
from config import DedupConfig
from tasks import storage
from tasks.compact_features import compact_features
from tasks.manifests import read_manifest
from tasks.references import Clusters, Collection, Inventory, Keepers, Manifest, Neighbors
from tasks.schemas import CLUSTERS, IMAGES, INVENTORY, KEEPERS
from tasks.stage01_list_images import list_images
from tasks.stage02_plan_shards import plan_shards
from tasks.stage04_collect_features import collect_features
from tasks.stage08b_sweep_eps import sweep_eps
from tasks.stage09_write_manifest import write_manifest
from tasks.stage10_write_report import make_report

IMAGES_PER_CLUSTER = 20


def main(num_images: int, num_files: int) -> None:
    """Lay out a night and print what each stage costs."""
    with tempfile.TemporaryDirectory(prefix="dedup-bench-") as folder:
        lay_out_files(Path(folder, "source"), num_images)
        config = config_of(folder)
        files = storage.list_files(storage.absolute_url(config.source_url))
        fill_store(config.workspace_url, config.features, files, -(-num_images // num_files))
        print(f"{num_images:,} images, {num_files:,} feature files")
        print(f"{'stage':<20}{'seconds':>10}{'peak MiB':>10}{'MiB more':>10}", flush=True)
        for name in STEPS:
            command = [sys.executable, "-m", "benchmarks.rows", name, folder]
            print(
                subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout,
                end="",
                flush=True,
            )


def run_step(name: str, folder: str) -> None:
    """Run one stage and print its line."""
    before = peak_mebibytes()
    started = time.perf_counter()
    STEPS[name](folder)
    seconds = time.perf_counter() - started
    peak = peak_mebibytes()
    print(f"{name:<20}{seconds:>10.1f}{peak:>10.0f}{peak - before:>10.0f}")


def peak_mebibytes() -> float:
    """Peak resident memory of this process; what `getrusage` says begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def config_of(folder: str) -> DedupConfig:
    return DedupConfig(source_url=f"{folder}/source", workspace_url=f"{folder}/workspace")


def list_step(folder: str) -> None:
    list_images.fn(config_of(folder))


def plan_step(folder: str) -> None:
    plan_shards.fn(inventory_of(folder), config_of(folder))


def collect_step(folder: str) -> None:
    collect_features.fn(inventory_of(folder), config_of(folder))


def compact_step(folder: str) -> None:
    compact_features(config_of(folder).workspace_url)


def decide_step(folder: str) -> None:
    """Not a stage: clusters and keepers as the search would have left them."""
    collection = collection_of(folder)
    images = storage.read_table(collection.images_url, IMAGES)
    items = np.arange(images.num_rows)
    keepers = items - items % IMAGES_PER_CLUSTER
    ids = images["image_id"]
    labels = pa.array((items // IMAGES_PER_CLUSTER).astype(np.int32))
    storage.publish_table(
        storage.join(collection.run_url, "clusters.parquet"),
        pa.table(
            {"image_id": ids, "cluster_id": labels, "is_core": np.ones(len(items), np.bool_)},
            CLUSTERS,
        ),
    )
    goes = items != keepers
    distances = np.full(int(goes.sum()), 0.01, np.float32)
    storage.publish_table(
        storage.join(collection.run_url, "keepers.parquet"),
        pa.table(
            {
                "image_id": ids.filter(pa.array(goes)),
                "keeper_id": ids.take(pa.array(keepers[goes])),
                "distance": distances,
            },
            KEEPERS,
        ),
    )


def sweep_step(folder: str) -> None:
    sweep_eps.fn(collection_of(folder), config_of(folder))


def manifest_step(folder: str) -> None:
    collection = collection_of(folder)
    write_manifest.fn(
        inventory_of(folder),
        collection,
        Neighbors(recall=1.0, depth=0),
        Clusters(storage.join(collection.run_url, "clusters.parquet"), 0),
        Keepers(storage.join(collection.run_url, "keepers.parquet"), 0),
        config_of(folder),
    )


def report_step(folder: str) -> None:
    run_url = collection_of(folder).run_url
    manifest = Manifest(storage.join(run_url, "manifest.parquet"), run_url)
    make_report(manifest, config_of(folder), 0, {})


def read_step(folder: str) -> None:
    read_manifest(storage.join(collection_of(folder).run_url, "manifest.parquet"))


STEPS: dict[str, Callable[[str], None]] = {
    "list_images": list_step,
    "plan_shards": plan_step,
    "collect_features": collect_step,
    "(decide)": decide_step,
    "sweep_eps": sweep_step,
    "write_manifest": manifest_step,
    "write_report": report_step,
    "read_manifest": read_step,
    "compact": compact_step,
    "plan_shards again": plan_step,
    "collect again": collect_step,
}


def inventory_of(folder: str) -> Inventory:
    (path,) = Path(folder, "workspace", "nights").glob("*/inventory.parquet")
    url = storage.absolute_url(str(path))
    return Inventory(url, path.parent.name, storage.read_table(url, INVENTORY, ["url"]).num_rows)


def collection_of(folder: str) -> Collection:
    (path,) = Path(folder, "workspace", "runs").glob("*/images.parquet")
    run_url = storage.absolute_url(str(path.parent))
    images_url = storage.join(run_url, "images.parquet")
    num_images = storage.read_table(images_url, IMAGES, ["url"]).num_rows
    return Collection(
        run_id=path.parent.name,
        run_url=run_url,
        images_url=images_url,
        features_url=storage.join(run_url, "features.npy"),
        num_images=num_images,
        num_items=num_images,
        largest_partition=num_images,
        num_missing=0,
    )


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in STEPS:
        run_step(sys.argv[1], sys.argv[2])
    else:
        sizes = [int(argument) for argument in sys.argv[1:]]
        main(sizes[0] if sizes else 100_000, sizes[1] if len(sizes) > 1 else 1_000)
