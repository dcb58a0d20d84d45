"""`make demo`: the nightly job on a small night of real photographs, checked against the truth."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.demo_night import GroundTruth, lay_out_night
from tasks.manifests import read_manifest
from tasks.storage import absolute_url
from tasks.summary import summary_rows

FOLDER = Path("demo-night")


def main() -> int:
    """Run the demo; the exit status is 0 only when the result matches the ground truth."""
    truth = lay_out_night(FOLDER / "images")
    print(f"Laid out a night of {truth.num_images} photographs in {FOLDER}/images:")
    print(f"  {len(truth.groups)} scenes that come {_sizes(truth)} times,")
    print(
        f"  {len(truth.unique)} photographs that come once, {truth.num_exact_copies} exact copies, "
        f"{len(truth.broken)} broken file."
    )
    arguments = [str(FOLDER / "images"), "--workspace", str(FOLDER / "workspace"), "--json"]
    print(f"\n$ dedup run {' '.join(arguments)}", flush=True)
    dedup = Path(sys.executable).parent / "dedup"
    finished = subprocess.run([dedup, "run", *arguments], stdout=subprocess.PIPE, check=False)
    if finished.returncode:
        return finished.returncode
    manifest = read_manifest(json.loads(finished.stdout)["manifest_url"])
    print()
    for label, value in summary_rows(manifest.summary):
        print(f"{label:<28}{value}")
    differences = compare(manifest.table.to_pylist(), truth, absolute_url(str(FOLDER / "images")))
    print()
    for difference in differences:
        print(f"DIFFERENT: {difference}")
    if not differences:
        print("The result matches the ground truth.")
    return 1 if differences else 0


def compare(rows: list[dict[str, object]], truth: GroundTruth, source_url: str) -> list[str]:
    """Hold a manifest against the truth.

    Args:
        rows: The rows of the manifest.
        truth: What should be in it.
        source_url: Folder of the night.

    Returns:
        What differs, one sentence each.
    """

    def name_of(url: object) -> str:
        return str(url).removeprefix(source_url + "/")

    clusters: dict[object, set[str]] = {}
    for row in rows:
        if row["cluster_id"] != -1:
            clusters.setdefault(row["cluster_id"], set()).add(name_of(row["url"]))
    found = {
        action: {name_of(row["url"]) for row in rows if row["action"] == action}
        for action in ("keep", "remove", "skip")
    }
    group_of = {name: scene for scene, names in truth.groups.items() for name in names}
    contents = [row["sha256"] for row in rows if row["action"] != "skip"]
    checks = {
        "clusters are the repeated scenes": set(map(frozenset, clusters.values()))
        == set(truth.groups.values()),
        "photographs that come once are kept": truth.unique <= found["keep"],
        "the broken file, and nothing else, is skipped": found["skip"] == truth.broken,
        "every scene keeps one photograph": len(found["keep"])
        == len(truth.groups) + len(truth.unique),
        "every removed photograph has its keeper in its own scene": all(
            group_of.get(name_of(row["url"])) == group_of.get(name_of(row["keeper_url"]))
            for row in rows
            if row["action"] == "remove"
        ),
        "the exact copies are found": len(contents) - len(set(contents)) == truth.num_exact_copies,
    }
    return [f"expected that {sentence}" for sentence, holds in checks.items() if not holds]


def _sizes(truth: GroundTruth) -> str:
    sizes = sorted({len(names) for names in truth.groups.values()})
    return " or ".join(map(str, sizes))


if __name__ == "__main__":
    sys.exit(main())
