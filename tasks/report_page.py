"""The page of the report: one HTML file that shows the run in numbers and plots by itself."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from numpy.typing import NDArray

from tasks.paths import as_folder
from tasks.rendering import new_environment
from tasks.report_data import PATHS_PER_SCRIPT, ROWS_PER_SCRIPT, partition_names, paths_below
from tasks.report_plots import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Plot,
    distance_plot,
    eps_plot,
    group_size_plot,
    map_plot,
    nearest_plot,
    partition_plot,
    sampled,
    time_plot,
)
from tasks.summary import Summary, summary_rows

MAX_LISTED = 20
"""Unreadable images that are listed before the rest is folded away."""

_SCRIPTS = (
    *("data.js", "virtual_list.js", "review.js", "pictures.js", "pair.js"),
    *("gallery.js", "group.js", "keys.js", "start.js"),
)


@dataclass(frozen=True)
class Number:
    """One of the large numbers at the top."""

    label: str
    value: str
    detail: str = ""
    is_alarming: bool = False


def headline(summary: Summary) -> list[Number]:
    """What a person wants to know first."""
    readable = summary.num_keep + summary.num_remove
    cost = f"{100 - summary.percent_annotation_left:.1f} %"
    searched = "every pair compared" if summary.is_search_exact else "measured on a sample"
    return [
        Number("images", f"{summary.num_images:,}"),
        Number("kept", f"{summary.num_keep:,}", f"{summary.num_noise:,} like no other"),
        Number("removed", f"{summary.num_remove:,}", f"of {readable:,} readable"),
        Number("exact copies", f"{summary.num_exact_copies:,}"),
        Number("saved", human_bytes(summary.bytes_saved), f"of {human_bytes(summary.bytes_total)}"),
        Number(
            "annotation saved",
            cost,
            "" if summary.cost_saved is None else f"{summary.cost_saved:,.2f} less to pay",
        ),
        Number(
            "unreadable",
            f"{summary.num_unreadable:,}",
            "skipped" if summary.num_unreadable else "",
            is_alarming=summary.num_unreadable > 0,
        ),
        Number(
            "orphans",
            f"{summary.num_orphans:,}",
            "farther than eps",
            is_alarming=summary.num_orphans > 0,
        ),
        Number("recall", f"{100 * summary.recall:.5g} %", searched),
    ]


def human_bytes(number: int) -> str:
    """A size in the largest decimal unit that it fills."""
    size = float(number)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}" if unit != "bytes" else f"{number} bytes"
        size /= 1000
    return f"{size:,.3g} TB"


def plots_of(
    manifest: pa.Table,
    images: pa.Table,
    summary: Summary,
    features: NDArray[np.float32],
    sweep: Mapping[str, Any],
) -> list[Plot]:
    """All plots of a run.

    Args:
        manifest: Table of `schemas.MANIFEST`.
        images: Table of `schemas.IMAGES`, row by row the same images.
        summary: What they amount to.
        features: `(N, 512)` float32, the features of the images that have an `item_id`.
        sweep: What `stage08b_sweep_eps` publishes.
    """
    decided = pc.not_equal(manifest["action"], "skip")
    rows, known = manifest.filter(decided), images.filter(decided)
    is_removed = pc.equal(rows["action"], "remove").to_numpy()
    seconds = pc.cast(known["captured_at"], pa.timestamp("s", "UTC"), safe=False)
    paths = paths_below(rows["url"], summary.source_url)
    nearest = sweep["nearest_distances"]
    plots = [
        sweep_plot(sweep, eps=summary.eps),
        distance_plot(pc.drop_null(rows["distance"]).to_numpy(), eps=summary.eps),
        nearest_plot(nearest["edges"], nearest["counts"], eps=summary.eps),
        group_size_plot(summary.cluster_sizes),
        time_plot(pc.cast(seconds, pa.int64()).to_numpy(), is_removed),
    ]
    has_feature = pc.is_valid(known["item_id"])
    items = known["item_id"].filter(has_feature).to_numpy()
    shown = sampled(len(items))
    names = paths.filter(has_feature).take(pa.array(shown)).to_pylist()
    goes = is_removed[has_feature.to_numpy()][shown]
    plots.append(map_plot(features[items[shown]], goes, names))
    partitions = partition_names(known["camera"], paths).to_pylist()
    return [*plots, partition_plot(partitions, is_removed)]


def sweep_plot(sweep: Mapping[str, Any], *, eps: float) -> Plot:
    """The curve of a `sweep.json`."""
    return eps_plot(sweep["eps"], sweep["kept_fraction"], eps=eps, is_sample=sweep["is_sample"])


def skipped_images(manifest: pa.Table, source_url: str) -> list[tuple[str, str]]:
    """Path and reason of all images that were skipped."""
    skipped = manifest.filter(pc.equal(manifest["action"], "skip"))
    paths = paths_below(skipped["url"], source_url)
    return list(zip(paths.to_pylist(), skipped["reason"].to_pylist(), strict=True))


def render_page(
    summary: Summary,
    *,
    digest: str,
    settings: object,
    num_rows: int,
    plots: list[Plot],
    skipped: list[tuple[str, str]],
) -> str:
    """Fill the page.

    Args:
        summary: The run in numbers.
        digest: That of the manifest.
        settings: Those that shaped it, ready for JSON.
        num_rows: Images in groups.
        plots: What `plots_of` gives.
        skipped: What `skipped_images` gives.
    """
    style = _style("report.css", "plot.css")
    rows = summary_rows(summary)
    return _render(
        "report.html.j2",
        summary=summary,
        folder=as_folder(summary.source_url),
        manifest_digest=digest,
        settings=json.dumps(settings, indent=2, ensure_ascii=False),
        numbers=headline(summary),
        gate=dict(rows).get("change gate"),
        eps=dict(rows)["eps"],
        num_groups=summary.num_clusters,
        rows_per_script=ROWS_PER_SCRIPT,
        num_path_scripts=-(-num_rows // PATHS_PER_SCRIPT),
        plots=plots,
        skipped=skipped,
        max_listed=MAX_LISTED,
        rows=rows,
        style=Markup(style),  # noqa: S704 (our own file)
        style_hash=content_hash(style),
    )


def content_hash(text: str) -> str:
    """What a Content-Security-Policy lets a page contain: the hash of a style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def kept_over_eps_svg(sweep: Mapping[str, Any], *, eps: float) -> str:
    """The curve of what would be kept as an SVG file of its own, in light or dark.

    Args:
        sweep: What `stage08b_sweep_eps` publishes.
        eps: The one that was chosen.
    """
    plot = sweep_plot(sweep, eps=eps)
    return _render("plot_alone.svg.j2", plot=plot, style=_style("plot.css"))


def page_script() -> bytes:
    """The page's script: its parts, one after the other."""
    return "\n".join(_text(name) for name in _SCRIPTS).encode()


def _style(*names: str) -> str:
    return "\n" + "".join(_text(name) for name in names)


def _text(name: str) -> str:
    return files("tasks").joinpath("templates", name).read_text(encoding="utf-8")


def _render(name: str, **values: object) -> str:
    return _environment().get_template(name).render(**values)


@lru_cache
def _environment() -> jinja2.Environment:
    environment = new_environment()
    layout = {"left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM, "width": WIDTH}
    environment.globals.update(layout)
    return environment
