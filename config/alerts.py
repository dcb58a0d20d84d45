"""The settings of what counts as a night unlike the others; nothing here decides about an image."""

from typing import Self

from pydantic import Field, model_validator

from config.fields import Settings


class AlertSettings(Settings):
    """How far a night may be from the ones before it until somebody is told.

    A night is held against the median of earlier nights of the same source, decided by the same
    settings. It is far from it when the difference is larger than both `max_deviation` standard
    deviations, as the spread of those nights gives them, and the smallest change that counts.
    """

    nights: int = Field(default=14, ge=1, le=400)
    """How many nights before it a night is held against."""

    min_nights: int = Field(default=7, ge=1)
    """With fewer of them, nothing is said."""

    max_deviation: float = Field(default=5.0, gt=0.0)
    """Standard deviations from the median that are still usual. They are estimated from few nights,
    so that of normal values with 5 one in 280 seems unusual after 14 nights, and one in 32 after 7;
    with 3.5 one in 54, and one in 14."""

    min_change_removed: float = Field(default=0.1, ge=0.0, le=1.0)
    """Smallest change of the share removed that counts: 0.1 is from 50 % to 60 %."""

    min_change_unreadable: float = Field(default=0.01, ge=0.0, le=1.0)
    """Smallest change of the unreadable share that counts."""

    min_change_distance: float = Field(default=0.25, ge=0.0)
    """Smallest change of the mean nearest distance that counts, as a share of the median."""

    min_change_images: float = Field(default=0.5, ge=0.0)
    """Smallest change of the number of images that counts, as a share of the median."""

    @model_validator(mode="after")
    def _enough_nights_can_be_found(self) -> Self:
        if self.min_nights > self.nights:
            raise ValueError(
                f"min_nights must be at most nights ({self.nights}), found {self.min_nights}"
            )
        return self
