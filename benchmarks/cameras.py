"""What each way of comparing keeps of a fixed camera: a table of situations.

    python -m benchmarks.cameras FOLDER [--every 4] [--region 0.1 0.08 0.86 1] [--dim 10]

The folder holds a groups.csv (path and situation of each frame) or a gt_foreground.csv (path and
share of the image that moves). The flow decides about the frames once for each mode: the whole
image, the region if one is given, the scene, and the scene of the region. With `--dim`, every so
manieth frame is there twice more, darker and brighter, as a situation of its own. The last rows say
how the distances lie: below which one 99 % of the pairs of quiet frames are, and how many of the
other frames could go for a quiet one at some values of eps.
"""

import argparse
import csv
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from benchmarks.gate import features_of, images_of, manifest_of
from config import NeighborSettings, load_config
from flows.dedup import dedup
from flows.temporary_server import ensure_server
from tasks.memo import forget_features
from tasks.summary import Summary

MOTION = ((0.005, "up to 0.5 % moves"), (0.03, "to 3 %"), (0.08, "to 8 %"), (1.0, "more"))
LIGHTS = (("darker", 0.7), ("brighter", 1.3))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cameras")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take every so manieth frame")
    parser.add_argument("--region", type=float, nargs=4, help="left, top, right, bottom")
    parser.add_argument("--dim", type=int, help="every so manieth frame in other light, too")
    parser.add_argument("--quiet", help="the quiet situation; by default the first one")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--eps", type=float, default=NeighborSettings().eps)
    parser.add_argument("--scene-eps", type=float, default=NeighborSettings().scene_eps)
    parser.add_argument("--json", type=Path, help="write the result there too")
    options = parser.parse_args()
    import benchmarks.quiet_prefect  # noqa: F401 (it sets the environment of the whole process)

    ensure_server(lambda: None)
    situations = read_situations(options.folder)[:: options.every]
    with tempfile.TemporaryDirectory(prefix="dedup-bench-") as place:
        source = Path(place, "source")
        situation_of = lay_out(situations, source, options.dim)
        quiet = options.quiet or situations[0][1]
        result = {
            name: measure(run(source, Path(place, name), view, options), situation_of, quiet)
            for name, view in modes(options.region).items()
        }
    frames = Counter(situation_of.values())
    print(as_text(options.folder.name, frames, result))
    if options.json:
        figures = {"frames": frames, "modes": result}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def read_situations(folder: Path) -> list[tuple[Path, str]]:
    """Path and situation of each frame of a folder, in the order of the file that says so."""
    groups = folder / "groups.csv"
    if groups.is_file():
        with groups.open(newline="") as file:
            return [(folder / row[0], row[1]) for row in list(csv.reader(file))[1:]]
    with (folder / "gt_foreground.csv").open(newline="") as file:
        return [
            (folder / row["path"], motion_of(float(row["moving_frac_of_roi"])))
            for row in csv.DictReader(file)
        ]


def motion_of(share: float) -> str:
    """How much moves, in words."""
    return next(name for most, name in MOTION if share <= most)


def lay_out(situations: list[tuple[Path, str]], source: Path, dim: int | None) -> dict[str, str]:
    """Copy the frames and say the situation of each copy, by its name."""
    source.mkdir(parents=True)
    situation_of: dict[str, str] = {}
    for number, (path, situation) in enumerate(situations):
        name = f"{number:06}-{path.name}"
        (source / name).write_bytes(path.read_bytes())
        situation_of[name] = situation
        if dim is None or number % dim:
            continue
        for light, gain in LIGHTS:
            with Image.open(path) as image:
                lit = image.convert("RGB").point(lambda step, gain=gain: min(255, step * gain))
            lit.save(source / f"{number:06}-{light}.jpg", quality=95)
            situation_of[f"{number:06}-{light}.jpg"] = f"{situation}, other light"
    return situation_of


def modes(region: list[float] | None) -> dict[str, dict[str, Any]]:
    """The view of each mode."""
    found: dict[str, dict[str, Any]] = {"whole image": {}}
    if region is not None:
        found["region"] = {"region": region}
    found["scene"] = {"compare": "scene"}
    if region is not None:
        found["scene of region"] = {"compare": "scene", "region": region}
    return found


def run(
    source: Path, workspace: Path, view: dict[str, Any], options: argparse.Namespace
) -> Summary:
    """Decide about the frames in one view."""
    forget_features()
    eps = options.scene_eps if view.get("compare") == "scene" else options.eps
    settings = {
        "source_url": str(source),
        "workspace_url": str(workspace),
        "features": {"engine": options.engine, "dtype": options.dtype},
        "neighbors": {"eps": eps, "scene_eps": eps},
        "view": view,
    }
    return dedup(load_config(None, settings))


def measure(summary: Summary, situation_of: dict[str, str], quiet: str) -> dict[str, Any]:
    """Count what a run keeps, and measure how far quiet frames are from each other."""
    situations = [situation_of[name_of(url)] for url in images_of(summary)["url"].to_pylist()]
    features = features_of(summary)
    is_quiet = np.array([name.startswith(quiet) for name in situations])
    among = pairs_of(features[is_quiet])
    to_quiet = 1 - features[~is_quiet] @ features[is_quiet].T
    return {
        "eps": summary.eps,
        "kept": Counter(situation_of[name_of(url)] for url in kept_urls(manifest_of(summary))),
        "quiet_p99": round(float(np.percentile(among, 99)), 4),
        "num_for_a_quiet_one": {
            str(eps): int((to_quiet.min(axis=1) <= eps).sum()) for eps in (0.01, 0.02, 0.03, 0.05)
        },
        "seconds": summary.seconds["embed"],
    }


def pairs_of(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Distances of all pairs."""
    return (1 - features @ features.T)[np.triu_indices(len(features), 1)]


def name_of(url: str) -> str:
    """The file name in a URL."""
    return url.rpartition("/")[2]


def kept_urls(manifest: pa.Table) -> list[str]:
    """URLs of what a manifest keeps."""
    urls: list[str] = manifest["url"].filter(pc.equal(manifest["action"], "keep")).to_pylist()
    return urls


def as_text(name: str, frames: Counter[str], result: dict[str, dict[str, Any]]) -> str:
    """The result as a table in Markdown."""
    lines = [
        f"{name}: {frames.total()} frames",
        "",
        f"| situation | frames | {' | '.join(result)} |",
        "| --- | ---: |" + " ---: |" * len(result),
    ]
    for situation, count in frames.items():
        kept = (str(mode["kept"].get(situation, 0)) for mode in result.values())
        lines.append(f"| {situation} | {count} | {' | '.join(kept)} |")
    totals = (str(sum(mode["kept"].values())) for mode in result.values())
    lines.append(f"| all | {frames.total()} | {' | '.join(totals)} |")
    for label, key in (
        ("eps", "eps"),
        ("99 % of quiet pairs are within", "quiet_p99"),
        ("others within .01, .02, .03, .05 of a quiet one", "num_for_a_quiet_one"),
    ):
        values = (mode[key] for mode in result.values())
        cells = (", ".join(map(str, v.values())) if isinstance(v, dict) else str(v) for v in values)
        lines.append(f"| {label} | | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
