"""Several nights against one run over all of them: python -m benchmarks.night_by_night DATA.

The frames of five cameras are cut into 2, 5 and 20 nights, in their order and shuffled. Besides,
an image of the first night arrives only in the last, one arrives twice, and two arrive again in the
last night after they were gone: one that a night had let go, and one that a night had kept and that
somebody deleted (and took out of the library). What a night lets go is deleted right after it.
`benchmarks.audit` looks at what is left.

What the difference to one run is bounded by: of two images that different nights have kept, each is
farther than eps from the other. So whatever is kept lies between two numbers that do not depend on
the nights, see `bounds`.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.audit import all_distances, audit, features_of_contents, rows_of
from benchmarks.deliveries import CAMERAS, Delivery, deliver, frames_of, plan_frames, renamed

SPLITS = (1, 2, 5, 20)
EPS = 0.05
FIRST_DAY = date(2026, 3, 10)
IMAGES_OF_A_CAMERA = 160


def main() -> int:
    """Run every split and print the table; the exit status says whether everything held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.night_by_night")
    parser.add_argument("data", type=Path, help="folder that the cameras' folders lie in")
    parser.add_argument("--cameras", nargs="+", default=CAMERAS, help="folders of frames below it")
    parser.add_argument("--splits", type=int, nargs="+", default=SPLITS)
    parser.add_argument("--images", type=int, default=IMAGES_OF_A_CAMERA, help="of each camera")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    import benchmarks.quiet_prefect  # noqa: F401 (it sets the environment of the whole process)
    from flows.temporary_server import ensure_server

    ensure_server(lambda: None)
    frames = frames_of(options.data, options.cameras, at_most=options.images)
    images = [one for night in plan_frames(frames, [FIRST_DAY]) for one in night]
    with tempfile.TemporaryDirectory(prefix="dedup-nights-") as folder:
        runs = compare_splits(Path(folder), images, options.splits, options.image_size)
        low, high = bounds(Path(folder, "1-in-order"), eps=EPS)
    figures = {"images": len(images), "kept_at_least": low, "kept_at_most": high, "runs": runs}
    report(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return int(any(run["orphans"] or run["kept_again"] or run["undecided"] for run in runs))


def compare_splits(
    folder: Path, images: Sequence[Delivery], splits: Sequence[int], image_size: int
) -> list[dict[str, Any]]:
    """Run all splits, each in a workspace of its own."""
    runs = []
    for order in ("in-order", "shuffled"):
        for num_nights in splits:
            if num_nights == 1 and order == "shuffled":
                continue  # one night has no order
            run = run_split(folder / f"{num_nights}-{order}", images, num_nights, order, image_size)
            print(f"{num_nights:>3} nights {order}: {run['kept']} kept", flush=True)
            runs.append(run)
    return runs


def run_split(
    place: Path, images: Sequence[Delivery], num_nights: int, order: str, image_size: int
) -> dict[str, Any]:
    """Run the images as so many nights, and look at what they leave behind."""
    # Embedding is remembered by content in this process, so only the first split embeds.
    from config import load_config
    from flows.dedup import dedup
    from tasks.prune_library import Pruning, prune_library

    source, workspace = place / "incoming", place / "workspace"
    nights = cut(images, num_nights, is_shuffled=order == "shuffled")
    manifests: list[Path] = []
    again: dict[str, Delivery] = {}
    for number, night in enumerate(nights):
        day = FIRST_DAY + timedelta(days=number)
        is_last = number + 1 == num_nights
        late = [renamed(one, "again ", "again") for one in again.values()] if is_last else []
        deliver(source / day.isoformat(), [*night, *late])
        said = {
            "source_url": f"{source}/{day.isoformat()}",
            "workspace_url": str(workspace),
            "source": {"partition_by": "^([^/]+)/"},
            "features": {"image_size": image_size},
            "neighbors": {"eps": EPS},
        }
        summary = dedup(load_config(None, said))
        manifests.append(Path(summary.manifest_url.removeprefix("file://")))
        rows = rows_of(manifests[-1])
        for path in [path for path, row in rows.items() if row["action"] == "remove"]:
            path.unlink()
        if not is_last:
            choose_again(again, rows, night)
            prune_library(str(workspace), Pruning(is_gone=True), execute=True)
    found = audit(source, workspace, manifests, eps=EPS)
    return {
        "nights": num_nights,
        "order": order,
        "kept": found.num_left,
        "removed": found.num_gone,
        "orphans": len(found.orphans),
        "kept_again": len(found.kept_again),
        "beside": found.num_beside,
        "undecided": len(found.undecided),
    }


def cut(images: Sequence[Delivery], num_nights: int, *, is_shuffled: bool) -> list[list[Delivery]]:
    """Cut images into nights; one of the first comes in the last, and one comes twice."""
    order = list(images)
    if is_shuffled:
        random.Random(0).shuffle(order)
    else:
        order.sort(key=lambda one: (one.captured_at, one.path))
    cuts = np.array_split(np.arange(len(order)), num_nights)
    nights = [[order[at] for at in some.tolist()] for some in cuts]
    late = nights[0].pop(len(nights[0]) // 2)
    nights[-1].append(replace(late, kind="late"))
    nights[-1].append(renamed(nights[0][0], "twice ", "copy"))
    return nights


def choose_again(
    again: dict[str, Delivery], rows: dict[Path, dict[str, Any]], night: Sequence[Delivery]
) -> None:
    """Choose one image that was let go and one that was kept and that nothing went for.

    The second one is deleted, as somebody does who does not ask.

    Args:
        again: What is chosen already, and stays so.
        rows: The manifest of a night.
        night: What the night has delivered.
    """
    needed = {row["keeper_url"] for row in rows.values()}
    delivered = {one.path: one for one in night}
    for path, row in rows.items():
        one = delivered.get("/".join(path.parts[-2:]))
        if one is None:
            continue
        if row["action"] == "remove":
            again.setdefault("gone", one)
        elif row["action"] == "keep" and row["url"] not in needed and "deleted" not in again:
            again["deleted"] = one
            path.unlink()


def bounds(one_night: Path, *, eps: float) -> tuple[int, int]:
    """What any number of nights keeps at least and at most, whatever comes first.

    At least: two images go for one keeper only if both are within eps of it, so of images without a
    common neighbour each needs a keeper of its own. At most: of images that are all within eps of
    each other different nights do not keep two, for the second would have gone for the first. (The
    same night may, where its cover wants both; such images are counted apart.)

    Args:
        one_night: Place of the split in which all images are one night.
        eps: Largest cosine distance of a twin.

    Returns:
        Images kept at least; images kept at most, without those beside another of their night.
    """
    (manifest,) = one_night.glob("workspace/runs/*/manifest.parquet")
    features = features_of_contents(one_night / "workspace")
    rows = [(path, row) for path, row in rows_of(manifest).items() if row["action"] != "skip"]
    low = high = 0
    for camera in sorted({path.parent.name for path, _ in rows}):
        contents = sorted({row["sha256"] for path, row in rows if path.parent.name == camera})
        is_near = all_distances(np.stack([features[sha256] for sha256 in contents])) <= eps
        low += num_strangers(is_near)
        high += num_cliques(is_near)
    return low, high


def num_strangers(is_near: NDArray[np.bool_]) -> int:
    """Number of items of which no two have a common neighbour, chosen greedily."""
    is_stranger = ~(is_near @ is_near)
    free, num_chosen = np.ones(len(is_near), bool), 0
    while free.any():
        loneliest = np.flatnonzero(free)[is_stranger[free][:, free].sum(axis=1).argmax()]
        free &= is_stranger[loneliest]
        num_chosen += 1
    return num_chosen


def num_cliques(is_near: NDArray[np.bool_]) -> int:
    """Number of groups of items that are all near each other, into which all are cut greedily."""
    free, num_groups = np.ones(len(is_near), bool), 0
    while free.any():
        fits, group = free.copy(), np.zeros(len(is_near), bool)
        while fits.any():
            member = np.flatnonzero(fits)[is_near[fits][:, fits].sum(axis=1).argmax()]
            group[member] = True
            fits &= is_near[member] & ~group
        free &= ~group
        num_groups += 1
    return num_groups


def report(figures: dict[str, Any]) -> None:
    """Print the table of differences."""
    runs = figures["runs"]
    alone = next((run["kept"] for run in runs if run["nights"] == 1), None)
    print(f"\n{figures['images']:,} images of five cameras, eps {EPS}")
    print("".join(f"{name:>12}" for name in COLUMNS) + f"{'difference':>12}")
    for run in runs:
        difference = "" if alone is None else f"{run['kept'] - alone:+}"
        print("".join(f"{run[name]!s:>12}" for name in COLUMNS) + f"{difference:>12}")
    print(
        f"any number of nights keeps at least {figures['kept_at_least']} and, without those beside "
        f"another of their night, at most {figures['kept_at_most']}"
    )


COLUMNS = (
    *("nights", "order", "kept", "removed"),
    *("orphans", "kept_again", "beside", "undecided"),
)


if __name__ == "__main__":
    sys.exit(main())
