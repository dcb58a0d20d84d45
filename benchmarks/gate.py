"""What the change gate saves on a camera, and what it does to the decision.

    python -m benchmarks.gate FOLDER [--suffix .jpg] [--max-change 16] [--json FILE]

Runs the flow twice over a folder of frames, without the gate and with it, and compares: how many
frames were skipped, how far their features are from their own (all of them, not only the sample
that the gate itself takes), how the manifest changed, and whether each removed image still has a
twin by the features of the run without a gate.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from config import GateSettings, load_config
from flows.dedup import dedup
from flows.temporary_server import ensure_server
from tasks import storage
from tasks.distances import cosine_distances, within
from tasks.memo import forget_features
from tasks.schemas import IMAGES, MANIFEST
from tasks.summary import Summary


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--suffix", action="append", help="as for dedup run")
    parser.add_argument("--max-change", type=int, default=GateSettings().max_change)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--json", type=Path, help="write the result there too")
    options = parser.parse_args()
    import benchmarks.quiet_prefect  # noqa: F401 (it sets the environment of the whole process)

    ensure_server(lambda: None)
    with tempfile.TemporaryDirectory(prefix="dedup-bench-") as place:
        plain = run(options, Path(place, "plain"), is_gated=False)
        forget_features()
        gated = run(options, Path(place, "gated"), is_gated=True)
        result = compare(plain, gated)
    print(as_text(options.folder.name, result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def run(options: argparse.Namespace, workspace: Path, *, is_gated: bool) -> Summary:
    """Run the flow, with the gate or without it; a gate that fails its check stays on here."""
    gate = {"enabled": is_gated, "max_change": options.max_change, "max_error": 2.0}
    settings: dict[str, Any] = {
        "source_url": str(options.folder),
        "workspace_url": str(workspace),
        "features": {"image_size": options.image_size},
        "gate": gate,
    }
    if options.suffix:
        settings["source"] = {"suffixes": options.suffix}
    return dedup(load_config(None, settings))


def compare(plain: Summary, gated: Summary) -> dict[str, Any]:
    """Hold the run with the gate against the one without it."""
    own, seen = features_of(plain), features_of(gated)
    stands = stand_ins_of(gated)
    errors = cosine_distances(own[stands], seen[stands])
    before, after = manifest_of(plain), manifest_of(gated)
    changed = pc.sum(pc.not_equal(before["action"], after["action"])).as_py() or 0
    if gated.gate is None:
        raise ValueError("expected a run with a gate")
    return {
        "num_images": plain.num_images,
        "share_skipped": round(len(stands) / max(1, len(own)), 4),
        "num_samples": gated.gate.num_samples,
        "largest_sampled_error": gated.gate.largest_error,
        "is_within_max_error": (gated.gate.largest_error or 0.0) <= GateSettings().max_error,
        "largest_error": round(float(errors.max(initial=0)), 4),
        "median_error": round(float(np.median(errors)), 4) if len(errors) else 0.0,
        "num_keep": [plain.num_keep, gated.num_keep],
        "num_actions_changed": changed,
        "num_without_true_twin": count_without_twin(after, own, item_of(plain), plain.eps),
        "embed_seconds": [plain.seconds["embed"], gated.seconds["embed"]],
    }


def run_file(summary: Summary, name: str) -> str:
    """URL of an artifact of a run."""
    return summary.manifest_url.rpartition("/")[0] + "/" + name


def features_of(summary: Summary) -> NDArray[np.float32]:
    """Features of all items of a run."""
    matrix: NDArray[np.float32] = np.load(storage.local_path(run_file(summary, "features.npy")))
    return matrix


def images_of(summary: Summary) -> pa.Table:
    """The readable images of a run, by item."""
    images = storage.read_table(run_file(summary, "images.parquet"), IMAGES)
    return images.filter(pc.is_valid(images["item_id"])).sort_by("item_id")


def stand_ins_of(summary: Summary) -> NDArray[np.int64]:
    """Items that have the feature of another frame."""
    return np.flatnonzero(pc.is_valid(images_of(summary)["stands_on"]).to_numpy())


def item_of(summary: Summary) -> dict[str, int]:
    """The item of each readable URL."""
    return {url: item for item, url in enumerate(images_of(summary)["url"].to_pylist())}


def manifest_of(summary: Summary) -> pa.Table:
    """The rows of a run's manifest."""
    return storage.read_table(summary.manifest_url, MANIFEST)


def count_without_twin(
    manifest: pa.Table, own: NDArray[np.float32], item_of_url: dict[str, int], eps: float
) -> int:
    """Count the removed images whose own feature is farther than eps from that of their keeper."""
    removed = manifest.filter(pc.equal(manifest["action"], "remove"))
    items, keepers = (
        [item_of_url[url] for url in removed[name].to_pylist()] for name in ("url", "keeper_url")
    )
    return int((~within(cosine_distances(own[items], own[keepers]), eps)).sum())


def as_text(name: str, result: dict[str, Any]) -> str:
    """The result as lines of text."""
    lines = [f"{name}: {result['num_images']} images"]
    lines += [f"  {label:<24}{value}" for label, value in result.items() if label != "num_images"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
