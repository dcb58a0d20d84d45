"""Where everything in the plots of the report is: numbers in, positions in a small picture out.

The template draws what is said here and knows nothing of scales.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tasks.blas import one_thread

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 18, 44
"""Margins around the area of a plot."""

NUM_BINS = 40
MAX_TIME_BINS = 48
MAX_PARTITIONS = 16
MAX_DOTS = 2_000

_PARTITION_HEIGHT = 30
_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
_TIME_STEPS = [1, 10, _MINUTE, 5 * _MINUTE, 15 * _MINUTE, _HOUR, 3 * _HOUR, 6 * _HOUR]
_TIME_STEPS += [_DAY, 7 * _DAY, 28 * _DAY, 364 * _DAY, 3_640 * _DAY]


@dataclass(frozen=True)
class Tick:
    """A number at an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Bar:
    """A bar of a plot, in pixels from the upper left corner."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    """`keep`, `remove`, or `plain`."""
    tooltip: str


@dataclass(frozen=True)
class Label:
    """A line of text in a plot."""

    x: float
    y: float
    text: str
    anchor: str = "start"


@dataclass(frozen=True)
class Dot:
    """An image in the map of the features."""

    x: float
    y: float
    kind: str
    tooltip: str


@dataclass(frozen=True)
class Plot:
    """A picture of numbers, ready to be drawn."""

    title: str
    x_label: str
    y_label: str
    note: str = ""
    height: int = HEIGHT
    x_ticks: tuple[Tick, ...] = ()
    y_ticks: tuple[Tick, ...] = ()
    bars: tuple[Bar, ...] = ()
    dots: tuple[Dot, ...] = ()
    curve: tuple[tuple[float, float], ...] = ()
    mark: Tick | None = None
    """A vertical line and what it says."""
    labels: tuple[Label, ...] = ()
    has_legend: bool = False
    """Whether the colours of kept and removed images are explained."""


@dataclass(frozen=True)
class Scale:
    """Values of an axis and the pixels where they are."""

    lowest: float
    highest: float
    start: float
    stop: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value is, to a hundredth of a pixel."""
        lowest, highest = self.lowest, self.highest
        if self.is_log:
            lowest, highest, value = (math.log(number) for number in (lowest, highest, value))
        share = (value - lowest) / (highest - lowest)
        return round(self.start + share * (self.stop - self.start), 2)

    def ticks(self, label: Callable[[float], str] = "{:g}".format) -> tuple[Tick, ...]:
        """Round numbers along the axis."""
        numbers = round_ratios if self.is_log else round_numbers
        return tuple(
            Tick(self(number), label(number)) for number in numbers(self.lowest, self.highest)
        )


def horizontal(lowest: float, highest: float, *, is_log: bool = False) -> Scale:
    """The axis from left to right."""
    return Scale(lowest, highest, LEFT, WIDTH - RIGHT, is_log)


def vertical(highest: float) -> Scale:
    """The axis from the bottom, which is 0, to the top."""
    return Scale(0.0, highest, HEIGHT - BOTTOM, TOP)


def round_numbers(lowest: float, highest: float, about: int = 4) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two numbers, roughly so many."""
    rough = (highest - lowest) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(lowest / step - 1e-9), math.floor(highest / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def round_ratios(lowest: float, highest: float) -> list[float]:
    """Powers of ten between two positive numbers; with 2 and 5 times those if they are few."""
    exponents = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1)
    factors = (1, 2, 5) if highest < 500 * lowest else (1,)
    numbers = [float(f"{factor}e{exponent}") for exponent in exponents for factor in factors]
    return [number for number in numbers if lowest <= number <= highest]


def short(number: float) -> str:
    """A count in few characters: 950, 1.5k, 20k, 3M."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def distance_plot(distances: NDArray[np.float32], *, eps: float) -> Plot:
    """How far the removed images are from their keepers."""
    highest = max(float(distances.max(initial=0.0)), eps * 1.1, 1e-6)
    counts, edges = np.histogram(distances.astype(np.float64), NUM_BINS, (0.0, highest))
    x = horizontal(0.0, highest)
    return _histogram(
        "Distance to the keeper", "removed images", x, edges.tolist(), counts.tolist(), eps
    )


def nearest_plot(edges: Sequence[float], counts: Sequence[int], *, eps: float) -> Plot:
    """How far each image is from the one that is most like it.

    Args:
        edges: Ascending edges of the bins in equal ratios, the first of them 0.
        counts: Images in each bin.
        eps: Where the line is drawn.
    """
    # Equal distances have no logarithm: their bin is drawn as wide as the others.
    lowest = edges[1] * edges[1] / edges[2]
    x = horizontal(lowest, edges[-1], is_log=True)
    return _histogram("Distance to the nearest image", "images", x, edges, counts, eps)


def _histogram(
    title: str, y_label: str, x: Scale, edges: Sequence[float], counts: Sequence[int], eps: float
) -> Plot:
    y = vertical(max([*counts, 1]))
    ends = [x(max(edge, x.lowest)) for edge in edges]
    bars = tuple(
        Bar(
            x=ends[at],
            y=y(count),
            width=round(max(ends[at + 1] - ends[at] - 0.5, 0.5), 2),
            height=round(y(0) - y(count), 2),
            kind="plain",
            tooltip=f"{edges[at]:.4f} to {edges[at + 1]:.4f}: {count:,}",
        )
        for at, count in enumerate(counts)
        if count
    )
    return Plot(
        title=title,
        x_label="cosine distance",
        y_label=y_label,
        x_ticks=x.ticks(),
        y_ticks=_count_ticks(y),
        bars=bars,
        mark=_mark(x, eps),
    )


def _mark(x: Scale, eps: float) -> Tick:
    return Tick(x(max(eps, x.lowest)), f"eps {eps:g}")


def group_size_plot(cluster_sizes: Mapping[int, int]) -> Plot:
    """How many groups there are of which size, in classes that double.

    Args:
        cluster_sizes: Number of groups of each size.
    """
    classes = size_classes(min(cluster_sizes, default=2), max(cluster_sizes, default=2))
    counts = [
        sum(times for size, times in cluster_sizes.items() if low <= size <= high)
        for low, high in classes
    ]
    x, y = horizontal(0, len(classes)), vertical(max([*counts, 1]))
    names = [f"{low}" if low == high else f"{low}–{high}" for low, high in classes]
    return Plot(
        title="Sizes of the groups",
        x_label="images in a group",
        y_label="groups",
        x_ticks=_thinned([Tick(x(at + 0.5), name) for at, name in enumerate(names)], 5),
        y_ticks=_count_ticks(y),
        bars=tuple(
            Bar(
                x=round(x(at) + 2, 2),
                y=y(count),
                width=round(x(1) - x(0) - 4, 2),
                height=round(y(0) - y(count), 2),
                kind="plain",
                tooltip=f"{name} images: {count:,} groups",
            )
            for at, (name, count) in enumerate(zip(names, counts, strict=True))
            if count
        ),
    )


def size_classes(smallest: int, largest: int) -> list[tuple[int, int]]:
    """Classes of group sizes, first and last of each: 1 if it occurs, 2, 3, 4, 5 to 8, 9 to 16."""
    highs = [1, 2, 3, 4]
    while highs[-1] < largest:
        highs.append(2 * highs[-1])
    classes = [(below + 1, high) for below, high in pairwise([0, *highs])]
    return [(low, high) for low, high in classes if smallest <= high and low <= max(largest, 2)]


def time_plot(seconds: NDArray[np.int64], is_removed: NDArray[np.bool_]) -> Plot:
    """When the kept and the removed images were taken.

    Args:
        seconds: `(N,)` seconds since 1970 in UTC.
        is_removed: `(N,)` whether each is removed.
    """
    plot = Plot("Kept and removed over time", "time, UTC", "images", has_legend=True)
    if not len(seconds):
        return plot
    first, last = int(seconds.min()), int(seconds.max())
    step = next(step for step in _TIME_STEPS if last // step - first // step < MAX_TIME_BINS)
    start = first // step
    num_bins = last // step - start + 1
    bins = seconds // step - start
    removed = np.bincount(bins[is_removed], minlength=num_bins)
    kept = np.bincount(bins[~is_removed], minlength=num_bins)
    x, y = horizontal(0, num_bins), vertical(max(int((removed + kept).max()), 1))
    day = _utc(first, "%Y-%m-%d")
    moments = [_utc((start + at) * step, "%Y-%m-%d %H:%M:%S") for at in range(num_bins)]
    shown = slice(0, 10) if step >= _DAY else slice(11, 16) if step >= _MINUTE else slice(11, 19)
    ticks = [Tick(x(at + 0.5), moment[shown]) for at, moment in enumerate(moments)]
    return Plot(
        title=plot.title,
        x_label="day, UTC" if step >= _DAY else f"time from {day}, UTC",
        y_label="images",
        x_ticks=_thinned(ticks, 4 if step < _DAY else 3),
        y_ticks=_count_ticks(y),
        bars=tuple(
            bar
            for at, moment in enumerate(moments)
            for bar in _stacked(x, y, at, moment, int(kept[at]), int(removed[at]))
        ),
        has_legend=True,
    )


def _stacked(x: Scale, y: Scale, at: int, name: str, kept: int, removed: int) -> list[Bar]:
    tooltip = f"{name}: {kept:,} kept, {removed:,} removed"
    width = round(max(x(1) - x(0) - 0.5, 0.5), 2)
    pieces = [("keep", 0, kept), ("remove", kept, kept + removed)]
    return [
        Bar(x(at), y(high), width, round(y(low) - y(high), 2), kind, tooltip)
        for kind, low, high in pieces
        if high > low
    ]


def partition_plot(names: Sequence[str], is_removed: NDArray[np.bool_]) -> Plot:
    """How much of each partition stays, those with most images first.

    Args:
        names: Partition of each of `N` images.
        is_removed: `(N,)` whether each is removed.
    """
    partitions, number = np.unique(np.asarray(names, dtype=object), return_inverse=True)
    images = np.bincount(number, minlength=len(partitions))
    removed = np.bincount(number[is_removed], minlength=len(partitions))
    order = np.lexsort((np.arange(len(partitions)), -images))
    shown = order[:MAX_PARTITIONS]
    x = Scale(0.0, float(max(images.max(initial=0), 1)), 0.0, float(WIDTH))
    bars, labels = [], []
    for place, at in enumerate(shown.tolist()):
        top = place * _PARTITION_HEIGHT
        name, kept = partitions[at] or "(no folder)", int(images[at] - removed[at])
        tooltip = f"{name}: {kept:,} kept, {removed[at]:,} removed"
        for kind, low, high in (("keep", 0, kept), ("remove", kept, int(images[at]))):
            if high > low:
                width = round(max(x(high) - x(low), 0.5), 2)
                bars.append(Bar(x(low), top + 17, width, 8, kind, tooltip))
        labels.append(Label(0, top + 12, name if len(name) <= 34 else f"{name[:33]}…"))
        labels.append(Label(WIDTH, top + 12, f"{kept:,} of {images[at]:,} kept", "end"))
    hidden = len(partitions) - len(shown)
    return Plot(
        title="By camera or folder",
        x_label="",
        y_label="",
        note=f"and {hidden:,} with fewer images" if hidden else "",
        height=max(len(shown), 1) * _PARTITION_HEIGHT,
        bars=tuple(bars),
        labels=tuple(labels),
        has_legend=True,
    )


def eps_plot(
    eps_values: Sequence[float], kept_fractions: Sequence[float], *, eps: float, is_sample: bool
) -> Plot:
    """What would be kept for every eps.

    Args:
        eps_values: Ascending distances; 0, which has no logarithm, is left out.
        kept_fractions: Share of the images that would stay at each, in [0, 1].
        eps: The one that was chosen.
        is_sample: Whether the shares are estimated from a part of the pairs.
    """
    drawn = [value for value in (*eps_values, eps) if value]
    x, y = horizontal(min(drawn), max(drawn), is_log=True), vertical(100.0)
    return Plot(
        title="Kept for every eps",
        x_label="eps, cosine distance",
        y_label="% kept",
        note="estimated: not every pair was compared" if is_sample else "",
        x_ticks=x.ticks(),
        y_ticks=y.ticks(),
        curve=tuple(
            (x(at), y(100.0 * share))
            for at, share in zip(eps_values, kept_fractions, strict=True)
            if at
        ),
        mark=_mark(x, eps),
    )


def sampled(num_images: int) -> NDArray[np.int64]:
    """The images of the map: all, or `MAX_DOTS` of them drawn with a fixed seed, ascending."""
    if num_images <= MAX_DOTS:
        return np.arange(num_images)
    return np.sort(np.random.default_rng(0).choice(num_images, MAX_DOTS, replace=False))


def map_plot(
    features: NDArray[np.float32], is_removed: NDArray[np.bool_], names: Sequence[str]
) -> Plot:
    """Features in the plane in which they differ most (principal components).

    Args:
        features: `(N, D)` float32 of the images shown.
        is_removed: `(N,)` whether each is removed.
        names: What each dot says.
    """
    title = "Map of the features"
    if len(features) < 3:
        return Plot(title, "", "", note="There are too few images for a map.")
    with one_thread():
        points, shares = principal_plane(features)
    x, y = _fitted(points[:, 0], LEFT, WIDTH - RIGHT), _fitted(points[:, 1], HEIGHT - BOTTOM, TOP)
    kinds = np.where(is_removed, "remove", "keep").tolist()
    return Plot(
        title=title,
        x_label=f"first component, {shares[0]:.0%} of the variance",
        y_label=f"second, {shares[1]:.0%}",
        note="What is close looks alike. Much of what tells images apart is not in this plane.",
        dots=tuple(
            Dot(round(x(px), 1), round(y(py), 1), kind, name)
            for (px, py), kind, name in zip(points.tolist(), kinds, names, strict=True)
        ),
        has_legend=True,
    )


def principal_plane(
    features: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Project features onto the plane in which they vary most (principal components, Pearson 1901).

    Written out because the import of scikit-learn takes more than a second of every night.

    Args:
        features: `(N, D)` float32, D at least 2.

    Returns:
        `(N, 2)` float64 points, and `(2,)` float64 shares of the variance along either axis, 0
        where all features are equal. The largest component of an axis is positive.
    """
    centered = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    variances, axes = np.linalg.eigh(centered.T @ centered)  # ascending
    variances, plane = variances.clip(0.0), axes[:, :-3:-1]
    plane = plane * np.sign(plane[np.abs(plane).argmax(axis=0), [0, 1]])
    return centered @ plane, variances[:-3:-1] / max(variances.sum(), np.finfo(float).tiny)


def _fitted(values: NDArray[np.float64], start: float, stop: float) -> Scale:
    lowest, highest = float(values.min()), float(values.max())
    return Scale(lowest, highest if highest > lowest else lowest + 1.0, start, stop)


def _count_ticks(y: Scale) -> tuple[Tick, ...]:
    return tuple(tick for tick in y.ticks(short) if "." not in tick.label or y.highest >= 10)


def _thinned(ticks: Sequence[Tick], at_most: int) -> tuple[Tick, ...]:
    return tuple(ticks[:: -(-len(ticks) // at_most)])


def _utc(seconds: int, pattern: str) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime(pattern)
