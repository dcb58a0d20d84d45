"""The command about all nights: `dedup history`."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from flows.console import EXIT_USAGE, explained_errors, fail, printable, refuse_credentials

if TYPE_CHECKING:
    from tasks.history import Acted, History, Night, Trend

COLUMNS = {
    "decided": "when the decision was made, in UTC",
    "images": "images listed",
    "new": "images that went through VGG16 then; the others had features already",
    "kept": "images that stay",
    "removed": "images that go, as far as apply is told to",
    "share": "removed images as a share of the readable ones",
    "unread": "share of all images that were skipped as unreadable",
    "nearest": "mean cosine distance of an image to the nearest other one of its night",
    "recall": "measured share of the pairs within eps that the clusters honour",
    "seconds": "wall time of that execution",
    "s/new": "seconds for each new image",
    "whole": "yes, or NO: shards failed and their images were skipped",
    "applied": "what was last done with the manifest: images done, and left alone",
    "alerts": "what somebody was told of",
    "run": "the run's id, as other commands take it",
}
TRENDS = {
    "num_images": ("images", ",.0f"),
    "removed_share": ("share removed", ".1%"),
    "unreadable_share": ("unreadable share", ".1%"),
    "mean_nearest_distance": ("mean nearest distance", ".4f"),
    "seconds_per_new_image": ("seconds per new image", ".2f"),
}
BARS = "▁▂▃▄▅▆▇█"
EXPLAINED = "\n\n".join(
    [
        "Nights of one source stand together: their URLs differ by nothing but a date. The last "
        "one is held against the complete nights before it that the same settings decided.",
        "The columns:",
        *(f"{name}: {meaning}." for name, meaning in COLUMNS.items()),
    ]
)


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the application."""
    app.command(epilog=EXPLAINED)(history)


def history(
    workspace: Annotated[str, typer.Option(help="Workspace: a path or any fsspec URL.")],
    last: Annotated[
        int | None, typer.Option(min=1, help="Only the last nights of each source; default: all.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Regular expression: only sources in which it is found.")
    ] = None,
    all_runs: Annotated[
        bool,
        typer.Option("--all", help="Every run; without, the last decision about each night."),
    ] = False,
    median_of: Annotated[
        int, typer.Option(min=1, help="Earlier nights that the last one is held against.")
    ] = 14,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print nights, trends and problems as one JSON object.")
    ] = False,
) -> None:
    """Show the nights of a workspace and how the last one compares with those before."""
    try:
        pattern = re.compile(source or "")
    except re.error as error:
        fail(f"--source: not a regular expression: {error}", EXIT_USAGE)
    refuse_credentials(workspace)
    with explained_errors():
        from tasks.history import History, latest_decisions, read_history, trends_of

        known = read_history(workspace, with_applies=True)
        nights = [night for night in known.nights if pattern.search(night.source_url)]
        decided = latest_decisions(nights)
        trends = {
            stream: trends_of(list(of_stream), median_of) for stream, of_stream in streams(decided)
        }
        shown = [
            night
            for _, of_stream in streams(nights if all_runs else decided)
            for night in list(of_stream)[-(last or len(nights)) :]
        ]
        _print(History(shown, known.problems), trends, as_json)


def streams(nights: Iterable["Night"]) -> Iterable[tuple[str, Iterable["Night"]]]:
    """Nights by what they are nights of."""
    return groupby(nights, key=lambda night: night.stream)


def _print(known: "History", trends: dict[str, list["Trend"]], as_json: bool) -> None:
    if as_json:
        said = {
            "nights": [night.model_dump(mode="json") for night in known.nights],
            "trends": {
                stream: [asdict(trend) | {"median": trend.median} for trend in of_stream]
                for stream, of_stream in trends.items()
            },
            "problems": known.problems,
        }
        sys.stdout.write(json.dumps(said) + "\n")
        return
    for stream, of_stream in streams(known.nights):
        sys.stdout.write(f"{printable(stream)}\n")
        _print_table([list(COLUMNS), *map(cells, of_stream)])
        for trend in trends[stream]:
            sys.stdout.write(f"  {trend_line(trend)}\n")
        sys.stdout.write("\n")
    for run_id, problem in known.problems.items():
        sys.stdout.write(f"{printable(run_id)}: {printable(problem)}\n")
    if not known.nights:
        sys.stdout.write("no nights\n")


def cells(night: "Night") -> list[str]:
    """A night as text, a cell for each column."""
    return [
        f"{night.executed_at:%Y-%m-%d %H:%M}" if night.executed_at else "-",
        f"{night.num_images:,}",
        _number(night.num_new, ",.0f"),
        f"{night.num_keep:,}",
        f"{night.num_remove:,}",
        _number(night.removed_share, ".1%"),
        _number(night.unreadable_share, ".1%"),
        _number(night.mean_nearest_distance, ".4f"),
        f"{night.recall:.4f}",
        _number(night.seconds, ",.0f"),
        _number(night.seconds_per_new_image, ".2f"),
        "yes" if night.is_complete else "NO",
        _acted(night.acted),
        ", ".join(dict.fromkeys(night.alerts)) or "-",
        printable(night.run_id),
    ]


def trend_line(trend: "Trend") -> str:
    """How the last night compares with the ones before it, in one line."""
    label, style = TRENDS[trend.measure]
    values = [*trend.earlier, *([] if trend.latest is None else [trend.latest])]
    line = f"{label:<22} {_number(trend.latest, style):>8}"
    if trend.median is None:
        return f"{line}  no night before it to compare with"
    median = f"{_number(trend.median, style)} of {len(trend.earlier)}"
    change = _change(trend, is_share=style == ".1%")
    return f"{line}  median {median:<14} {change:>9}  {sparkline(values)}"


def sparkline(values: Sequence[float]) -> str:
    """Numbers as a row of bars, from the smallest to the largest of them."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if low == high:
        return BARS[3] * len(values)
    top = len(BARS) - 1
    return "".join(BARS[round(top * (value - low) / (high - low))] for value in values)


def _change(trend: "Trend", *, is_share: bool) -> str:
    if trend.latest is None or trend.median is None:
        return "-"
    if is_share:
        return f"{100 * (trend.latest - trend.median):+.1f} pp"
    return f"{trend.latest / trend.median - 1:+.1%}" if trend.median else "-"


def _acted(acted: "Acted | None") -> str:
    if acted is None:
        return "-"
    if not acted.has_ended:
        return f"{acted.operation}: not ended"
    if acted.num_done is None:
        return acted.operation
    left = f", {acted.num_left:,} left" if acted.num_left else ""
    return f"{acted.operation} {acted.num_done:,}{left}"


def _number(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)


def _print_table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first_text = list(COLUMNS).index("whole")
    for row in rows:
        line = "  ".join(
            f"{cell:<{width}}" if number >= first_text else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        sys.stdout.write(f"  {line.rstrip()}\n")
