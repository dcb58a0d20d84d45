"""What a person said about pairs of a run, kept beside the run, and what follows from it."""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks import storage
from tasks.calibration import FloatArray, PrecisionCurve, distance_edges, precision_curve
from tasks.errors import ArtifactError

Said = Literal["same", "different", "unsure"]

_SHARES = {"same": 1.0, "different": 0.0, "unsure": 0.5}

MIN_ANSWERS_OF_A_PARTITION = 12
"""With fewer answers the interval of a partition's precision would say next to nothing."""

_NUM_EPS_SHOWN = 9
_BINS_AT_END = 4


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Answer(_Document):
    """What a person said about one pair."""

    a: str
    """URL of one image."""
    b: str
    """URL of the other."""
    partition: str
    distance: float = Field(gt=0, le=2)
    said: Said


class Partition(_Document):
    """The images of one partition that are compared with each other."""

    name: str
    num_images: int = Field(ge=0)
    counts: tuple[float, ...]
    """How many of its pairs are in each bin of distances."""


class Calibration(_Document):
    """All answers about a run, with all that is needed to draw conclusions from them."""

    format: Literal["image-dedup calibration 1"] = "image-dedup calibration 1"
    run_id: str
    eps: float = Field(ge=0, le=1)
    """With which the run was decided."""
    setting: Literal["eps", "scene_eps"] = "eps"
    """Where a profile says it."""
    partitions: tuple[Partition, ...]
    answers: tuple[Answer, ...] = ()

    def with_answer(self, answer: Answer) -> "Calibration":
        """A copy with one answer more."""
        return self.model_copy(update={"answers": (*self.answers, answer)})

    def without_last_answer(self) -> "Calibration":
        """A copy with one answer less."""
        return self.model_copy(update={"answers": self.answers[:-1]})


class Estimate(_Document):
    """How precise an eps is."""

    eps: float
    precision: float
    """Share of the pairs within eps that show the same, in [0, 1]."""
    low: float
    """Lower end of its 95 % interval."""
    high: float


class PartitionResult(_Document):
    """What fits one partition."""

    partition: str
    num_answers: int
    suggested: Estimate | None


class CalibrationResult(_Document):
    """What the answers amount to; `dedup calibrate --json` prints it."""

    run_id: str
    num_answers: int
    num_same: int
    num_different: int
    num_unsure: int
    wanted_precision: float
    setting: Literal["eps", "scene_eps"] = "eps"
    """What of a profile the answers are about."""
    configured: Estimate
    """The eps that the run was decided with."""
    suggested: Estimate | None
    """The largest eps that reaches the wanted precision; None when none around that eps does."""
    is_at_end: bool
    """The suggested eps is among the largest asked about: an even larger one may do."""
    curve: tuple[Estimate, ...]
    """Some eps from the smallest to the largest one asked about."""
    partitions: tuple[PartitionResult, ...]
    """Those with answers enough."""


def calibration_url(manifest_url: str) -> str:
    """Where the answers about a run lie."""
    return storage.join(manifest_url.rpartition("/")[0], "calibration.json")


def read_calibration(url: str) -> Calibration:
    """Read answers.

    Raises:
        FileNotFoundError: There are none yet.
        ArtifactError: The file is damaged or is something else.
    """
    try:
        found = Calibration.model_validate_json(storage.read_bytes(url))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ArtifactError(
            f"expected the answers of a calibration, found something else: {place}: "
            f"{first['msg']}: {url}"
        ) from None
    num_bins = len(distance_edges(found.eps)) - 1
    for partition in found.partitions:
        if len(partition.counts) != num_bins or min(partition.counts) < 0:
            raise ArtifactError(
                f"expected {num_bins} counts of partition {partition.name!r}, none negative, "
                f"found something else: {url}"
            )
    return found


def write_calibration(url: str, calibration: Calibration) -> None:
    """Publish answers; those that were there are replaced in one step."""
    storage.publish_bytes(url, calibration.model_dump_json().encode() + b"\n")


def comparable_items(images: pa.Table) -> dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """The items of each partition whose own feature is known.

    Args:
        images: Columns `item_id`, `camera` and `stands_on` of `schemas.IMAGES`.

    Returns:
        Items by the partition's name, both sorted. A gated frame has the feature of another frame,
        and so tells nothing about how it looks itself.
    """
    known = images.filter(pc.and_(pc.is_valid(images["item_id"]), pc.is_null(images["stands_on"])))
    known = known.sort_by([("camera", "ascending"), ("item_id", "ascending")])
    items = known["item_id"].to_numpy().astype(np.int64)
    names, starts = np.unique(known["camera"].to_numpy(zero_copy_only=False), return_index=True)
    return dict(zip(names.tolist(), np.split(items, starts[1:]), strict=True)) if len(items) else {}


def conclude(calibration: Calibration, wanted_precision: float) -> CalibrationResult:
    """Say what the answers amount to.

    Args:
        calibration: The answers.
        wanted_precision: Share of the pairs within eps that shall show the same, in [0, 1].
    """
    answers = calibration.answers
    said = [answer.said for answer in answers]
    edges = distance_edges(calibration.eps)
    counts = np.array([partition.counts for partition in calibration.partitions])
    curve = _curve(answers, edges, counts.reshape(-1, len(edges) - 1).sum(axis=0))
    best = curve.best(wanted_precision) if answers else None
    configured = int(np.abs(curve.eps - calibration.eps).argmin())
    shown = np.unique(np.linspace(0, len(curve.eps) - 1, _NUM_EPS_SHOWN).round().astype(int))
    return CalibrationResult(
        run_id=calibration.run_id,
        num_answers=len(answers),
        num_same=said.count("same"),
        num_different=said.count("different"),
        num_unsure=said.count("unsure"),
        wanted_precision=wanted_precision,
        setting=calibration.setting,
        configured=_estimate(curve, configured),
        suggested=None if best is None else _estimate(curve, best),
        is_at_end=best is not None and best >= len(curve.eps) - _BINS_AT_END,
        curve=tuple(_estimate(curve, int(position)) for position in shown),
        partitions=tuple(_conclude_partitions(calibration, wanted_precision)),
    )


def _conclude_partitions(
    calibration: Calibration, wanted_precision: float
) -> Iterable[PartitionResult]:
    edges = distance_edges(calibration.eps)
    if len(calibration.partitions) < 2:
        return
    for partition in calibration.partitions:
        answers = [answer for answer in calibration.answers if answer.partition == partition.name]
        if len(answers) < MIN_ANSWERS_OF_A_PARTITION:
            continue
        curve = _curve(answers, edges, np.array(partition.counts))
        best = curve.best(wanted_precision)
        yield PartitionResult(
            partition=partition.name,
            num_answers=len(answers),
            suggested=None if best is None else _estimate(curve, best),
        )


def _curve(answers: Sequence[Answer], edges: FloatArray, counts: FloatArray) -> PrecisionCurve:
    distances = np.array([answer.distance for answer in answers], np.float64)
    shares = np.array([_SHARES[answer.said] for answer in answers], np.float64)
    return precision_curve(distances, shares, edges, counts)


def _estimate(curve: PrecisionCurve, position: int) -> Estimate:
    precision, low, high = (
        round(float(values[position]), 4) for values in (curve.precision, curve.low, curve.high)
    )
    return Estimate(eps=float(curve.eps[position]), precision=precision, low=low, high=high)


def result_rows(result: CalibrationResult) -> list[tuple[str, str]]:
    """The result as labelled values for people, in reading order."""
    said = f"{result.num_same} same, {result.num_different} different, {result.num_unsure} unsure"
    wanted = f"{100 * result.wanted_precision:g} %"
    rows = [
        ("run", result.run_id),
        ("answers", f"{result.num_answers:,} ({said})"),
        (f"eps for {wanted}", _suggestion(result.suggested, result.is_at_end)),
        *(
            (
                f"  {of_one.partition}",
                f"{_suggestion(of_one.suggested)}; {of_one.num_answers} answers",
            )
            for of_one in result.partitions
        ),
        ("eps of this run", _suggestion(result.configured)),
        ("eps", "share of the pairs within it that show the same, with its 95 % interval"),
    ]
    rows += [(f"{estimate.eps:g}", _as_text(estimate)) for estimate in result.curve]
    return rows


def profile_lines(result: CalibrationResult) -> str:
    """The lines of a YAML profile that take up the suggestion; empty without one."""
    if result.suggested is None:
        return ""
    return f"neighbors:\n  {result.setting}: {result.suggested.eps:g}\n"


def _suggestion(estimate: Estimate | None, is_at_end: bool = False) -> str:
    if estimate is None:
        return "none of those asked about; more answers (--pairs) may settle it"
    more = "; a larger one may do too" if is_at_end else ""
    return f"{estimate.eps:g}: {_as_text(estimate)}{more}"


def _as_text(estimate: Estimate) -> str:
    precision, low, high = (
        100 * value for value in (estimate.precision, estimate.low, estimate.high)
    )
    return f"{precision:.1f} % same ({low:.1f} to {high:.1f})"
