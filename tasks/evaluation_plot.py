"""The scores of a run over eps as a picture."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasks.evaluating import Estimate, Evaluation
from tasks.rendering import render

WIDTH = 460
HEIGHT = 300
LARGEST_EPS = 0.3

PANELS = {
    "Pairs in one cluster": ("precision", "recall", "f1"),
    "Removed images and their keepers": (
        "removal_precision",
        "removal_recall",
        "removal_f1",
    ),
}
NAMES = ("precision", "recall", "F1")


@dataclass(frozen=True)
class Curve:
    """One measure over eps, in the pixels of its panel."""

    name: str
    line: str
    """Points as `polyline` takes them."""
    band: str
    """The interval as a `polygon`."""


def render_plot(evaluation: Evaluation) -> str:
    """Draw precision, recall and F1 over eps with their intervals, as SVG."""
    panels = {
        title: [
            curve(name, [(scores.eps, getattr(scores, field)) for scores in evaluation.sweep])
            for name, field in zip(NAMES, fields, strict=True)
        ]
        for title, fields in PANELS.items()
    }
    return render(
        "evaluation.svg.j2",
        evaluation=evaluation,
        panels=panels,
        width=WIDTH,
        height=HEIGHT,
        x_of=x_of,
        y_of=y_of,
    )


def curve(name: str, drawn: Sequence[tuple[float, Estimate]]) -> Curve:
    """Draw one measure; where it has no value, there is no point.

    Args:
        name: What the measure is called.
        drawn: Each eps, ascending, and what the measure is there.
    """
    return Curve(
        name=name,
        line=_points((eps, found.value) for eps, found in drawn),
        band=" ".join(
            [
                _points((eps, found.low) for eps, found in drawn),
                _points((eps, found.high) for eps, found in reversed(drawn)),
            ]
        ).strip(),
    )


def x_of(eps: float) -> float:
    """Where an eps is, in pixels from the left of a panel."""
    return round(WIDTH * eps / LARGEST_EPS, 1)


def y_of(share: float) -> float:
    """Where a share in [0, 1] is, in pixels from the top of a panel."""
    return round(HEIGHT * (1 - share), 1)


def _points(values: Iterable[tuple[float, float | None]]) -> str:
    return " ".join(f"{x_of(eps)},{y_of(value)}" for eps, value in values if value is not None)
