"""What is compared of a camera's images, and what is different for some cameras: data only."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from config.fields import Duration, Pattern, Settings

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
"""Part of an image's width from its left edge, or of its height from its top."""

Point = tuple[Fraction, Fraction]
"""x and y of a point in an upright image."""


class ViewSettings(Settings):
    """Which part of an image is compared, and as what."""

    compare: Literal["image", "scene"] = "image"
    """`image`: all of it. `scene`: what differs from the average of the partition, for fixed
    cameras, where a small car on an old road is the news."""

    region: tuple[Fraction, Fraction, Fraction, Fraction] | None = None
    """Left, top, right and bottom of the rectangle that is compared; by default the whole image."""

    masks: tuple[Annotated[tuple[Point, ...], Field(min_length=3)], ...] = ()
    """Polygons that are painted over before anything is compared: burnt-in clocks, waving trees."""

    @model_validator(mode="after")
    def _region_has_an_area(self) -> Self:
        if self.region is not None:
            left, top, right, bottom = self.region
            if left >= right or top >= bottom:
                raise ValueError(
                    "region expects left < right and top < bottom, "
                    f"found {left:g}, {top:g}, {right:g}, {bottom:g}"
                )
        return self


class CameraSettings(Settings):
    """What is different for the partitions in whose name a pattern is found."""

    pattern: Pattern
    """Regular expression searched in the name of the partition."""

    eps: float | None = Field(default=None, ge=0.0, le=1.0)
    """Largest cosine distance of a twin; by default that of all cameras."""

    window: Duration | None = None
    """Compare with the library only so far back; by default as all cameras."""

    view: ViewSettings | None = None
    """What is compared; by default as of all cameras."""

    def is_of(self, partition: str) -> bool:
        """Tell whether these are the settings of a partition."""
        return re.search(self.pattern, partition) is not None
