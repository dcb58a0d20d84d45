"""Turns the figures of the benchmarks into the tables and plots of `docs/`."""

import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import tensorflow

mpl.use("svg")
from matplotlib import pyplot as plt

Figures = Mapping[str, Any]

mpl.rcParams["svg.hashsalt"] = "image-dedup"  # so that equal figures give equal files


def write_docs(figures: Path, docs: Path) -> None:
    """Write `benchmarks.json`, `benchmarks.md` and the plots from all figures that there are.

    Args:
        figures: Folder with one JSON file for each benchmark.
        docs: Where the results go.
    """
    found = {path.stem: json.loads(path.read_text()) for path in sorted(figures.glob("*.json"))}
    docs.mkdir(exist_ok=True)
    (docs / "benchmarks.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    sections = [
        f"# Benchmarks\n\nMade by `make bench` and `make bench-full`. {machine()}. Ratios are of "
        "things measured side by side; absolute rates depend on what else the machine did.\n"
    ]
    embeddings = [value for name, value in found.items() if name.startswith("embedding-")]
    if embeddings:
        sections.append(embedding_section(embeddings))
    for name, section in SECTIONS.items():
        sections += [section(found[part]) for part in found if part.startswith(name)]
    (docs / "benchmarks.md").write_text("\n".join(sections))
    if "neighbors" in found:
        plot_neighbors(found["neighbors"], docs / "neighbors.svg")


def machine() -> str:
    """What this machine and its TensorFlow are, in a few words."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = f"{len(models)} cores of {models[0]}" if models else platform.machine()
    return f"{processor}, Python {platform.python_version()}, TensorFlow {tensorflow.__version__}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def embedding_section(results: list[Figures]) -> str:
    """Embedding end to end against the limit and against the usual loop."""
    rows = [
        [
            f"{result['engine']} {result['dtype']} {result['image_size']}",
            f"{result['images_per_second']['b']:.1f}",
            *(ratio(result, name) for name in ("b/a", "b/c", "b/d")),
        ]
        for result in results
    ]
    header = [
        "engine, format, size",
        "images/s",
        "of the bare forward pass",
        "times the usual loop",
    ]
    return "## Embedding, from files to feature files\n\n" + table(
        [*header, "times OpenVINO's bare pass in bfloat16"], rows
    )


def ratio(result: Figures, name: str) -> str:
    """One ratio of an embedding, where it was measured."""
    return f"{result['ratios'][name]:.2f}" if name in result["ratios"] else "-"


def neighbors_section(result: Figures) -> str:
    """Search and clusters as the number of images grows."""
    rows = [
        [
            f"{run['images']:,}",
            f"{run['seconds_to_clusters']:.1f}",
            f"{run['peak_bytes'] / 2**30:.2f}",
            f"{run['recall']:.6f}",
            f"{run['clusters']:,}",
            f"{run['largest']:,}",
            *(
                "-" if run[name] is None else f"{run[name]:,}"
                for name in ("kept", "kept_first_come", "kept_at_least")
            ),
        ]
        for run in result["runs"]
    ]
    header = ["images", "seconds to clusters", "peak GiB", "recall", "clusters", "largest"]
    text = "## Neighbours and clusters\n\n" + table(
        [*header, "kept", "first come would keep", "nobody could keep fewer than"], rows
    )
    if result.get("growth_exponent"):
        text += f"\nSeconds grow like images to the power {result['growth_exponent']:.2f}.\n"
    rows = [
        [
            f"{run['images']:,}",
            f"{run['seconds']:.1f}",
            f"{run['seconds_scikit']:.1f}",
            f"{run['peak_bytes'] / 2**30:.2f}",
            f"{run['peak_bytes_scikit'] / 2**30:.2f}",
            "equal" if run["labels_equal"] else "different",
        ]
        for run in result["scikit"]
    ]
    header = ["images, all pairs", "seconds", "scikit-learn", "peak GiB", "scikit-learn", "labels"]
    return text + "\n" + table(header, rows)


def overhead_section(result: Figures) -> str:
    """The flow against a plain loop."""
    return "## The flow against a plain loop over the same functions\n\n" + table(
        ["images", "side", "shards", "seconds more", "times the loop", "beside the full size"],
        [
            [
                f"{result['num_images']:,}",
                str(result["image_size"]),
                str(result["num_shards"]),
                f"{result['overhead_seconds']:.2f}",
                f"{result['overhead_ratio']:.3f}",
                f"{result['full_size_ratio']:.4f}",
            ]
        ],
    )


def second_night_section(result: Figures) -> str:
    """A night in which a tenth is new against the first."""
    rows = [
        [night["night"], f"{night['embedded']:,}", f"{night['seconds']:.1f}"]
        for night in result["nights"]
    ]
    return (
        "## A second night\n\n"
        + table(["", "embedded", "seconds"], rows)
        + f"\nThe second night costs {result['times_its_share']:.2f} times its share of new images "
        f"({result['share_of_new']:.2f}); its embedding {result['embedding_times_its_share']:.2f} "
        "times.\n"
    )


def library_section(result: Figures) -> str:
    """What the library adds to a night."""
    rows = [
        [f"{run['library']:,}", f"{run['seconds']:.2f}", str(run["peak_mib"])]
        for run in result["runs"]
    ]
    return (
        f"## A night of {result['images']:,} images beside a growing library\n\n"
        + table(["images in the library", "seconds it adds", "peak MiB"], rows)
        + f"\nThese seconds grow like the library to the power {result['exponent']}.\n"
    )


def plain_section(title: str) -> Callable[[Figures], str]:
    """A section that lists the figures as they are."""

    def section(result: Figures) -> str:
        rows = [[name, str(value)] for name, value in result.items() if not isinstance(value, dict)]
        return f"## {title}\n\n" + table(["", ""], rows)

    return section


SECTIONS: dict[str, Callable[[Figures], str]] = {
    "neighbors": neighbors_section,
    "overhead": overhead_section,
    "second-night": second_night_section,
    "library-growth": library_section,
    "large-night": plain_section("A night of 100,000 images"),
}


def plot_neighbors(result: Figures, path: Path) -> None:
    """Draw seconds over images, beside scikit-learn's."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for label, runs, key in (
        ("cells", result["runs"], "seconds_to_clusters"),
        ("all pairs", result["scikit"], "seconds"),
        ("scikit-learn's DBSCAN", result["scikit"], "seconds_scikit"),
    ):
        axes.loglog([run["images"] for run in runs], [run[key] for run in runs], "o-", label=label)
    axes.set(xlabel="images", ylabel="seconds from features to clusters")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
