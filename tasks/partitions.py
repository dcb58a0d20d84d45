"""What holds for each image by the partition it is in; each name is looked up once."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from config import CameraSettings, DedupConfig, NeighborSettings, ViewSettings
from config.fields import Pattern
from tasks.comparisons import Eps
from tasks.paths import partition_of, relative_to


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class _Source(_Part):
    partition_by: Pattern | None = None


class _Neighbors(_Part):
    eps: float = Field(default=NeighborSettings().eps, ge=0, le=1)
    scene_eps: float = Field(default=NeighborSettings().scene_eps, ge=0, le=1)


class PartitionedBy(_Part):
    """As much of the settings in a manifest as says what holds for which of its images."""

    source: _Source = _Source()
    neighbors: _Neighbors = _Neighbors()
    view: ViewSettings = ViewSettings()
    cameras: tuple[CameraSettings, ...] = ()

    def as_config(self) -> DedupConfig:
        """The same as a config, of nowhere."""
        return DedupConfig.model_validate(
            {"source_url": "nowhere", "workspace_url": "nowhere", **self.model_dump()}
        )


def eps_of(cameras: pa.ChunkedArray, config: DedupConfig) -> NDArray[np.float64]:
    """Find the eps of each image.

    Args:
        cameras: `(N,)` names of their partitions, in any order.
        config: What holds for which partition.

    Returns:
        `(N,)` float64 largest cosine distances of a twin.
    """
    names = pc.unique(cameras)
    eps = np.array([config.of_partition(name).eps for name in names.to_pylist()], np.float64)
    each: NDArray[np.float64] = eps[pc.index_in(cameras, value_set=names).to_numpy()]
    return each


def partitioned_by(metadata: Mapping[str, str]) -> PartitionedBy:
    """Read from the metadata of a manifest what holds for which of its images."""
    return PartitionedBy.model_validate_json(metadata.get("config", "{}"))


def eps_of_rows(manifest: pa.Table, metadata: Mapping[str, str]) -> Eps:
    """Find the eps of each row of a manifest, or the one of all, from what it says of itself.

    Args:
        manifest: Column `url` of `schemas.MANIFEST`; keepers of earlier nights have any eps.
        metadata: Its metadata.
    """
    said = partitioned_by(metadata)
    if not said.cameras:
        return float(metadata["eps"])
    paths = (relative_to(url, metadata["source_url"]) for url in manifest["url"].to_pylist())
    names = [partition_of(path, said.source.partition_by) for path in paths]
    return eps_of(pa.chunked_array([names], pa.string()), said.as_config())
