"""How far a night is from the ones before it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIGMA_PER_MAD = 1.4826
"""Standard deviations in a median absolute deviation of normal values: 1 / Φ⁻¹(3/4)."""


@dataclass(frozen=True)
class Band:
    """What is usual."""

    median: float
    allowed: float
    """Largest distance from the median that is still usual."""

    def has(self, value: float) -> bool:
        """Tell whether a value is usual."""
        return abs(value - self.median) <= self.allowed


def usual_band(
    earlier: Sequence[float],
    *,
    max_deviation: float,
    min_change: float = 0.0,
    min_relative_change: float = 0.0,
) -> Band:
    """Say which values are usual after those of earlier nights.

    Median and median absolute deviation (MAD) instead of mean and standard deviation, so that a
    bad night among the earlier ones neither hides nor causes an alert: Iglewicz and Hoaglin, How
    to Detect and Handle Outliers (1993), who propose 3.5 deviations for samples larger than a few
    nights. The MAD of nights that are all alike is 0, so it has a floor.

    Args:
        earlier: At least one value.
        max_deviation: Standard deviations, estimated as 1.4826 MAD, that are usual.
        min_change: A smaller difference is always usual.
        min_relative_change: The same as a share of the median.
    """
    values = np.asarray(earlier, np.float64)
    median = float(np.median(values))
    deviation = SIGMA_PER_MAD * float(np.median(np.abs(values - median)))
    allowed = max(max_deviation * deviation, min_change, min_relative_change * abs(median))
    return Band(median=median, allowed=allowed)
