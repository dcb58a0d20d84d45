"""What a run can be told: frozen models and the YAML profiles that fill them."""

from config.models import (
    ClusterSettings,
    DedupConfig,
    ExecutionSettings,
    FeatureSettings,
    NeighborSettings,
    SourceSettings,
)
from config.profiles import ConfigError, load_config

__all__ = [
    "ClusterSettings",
    "ConfigError",
    "DedupConfig",
    "ExecutionSettings",
    "FeatureSettings",
    "NeighborSettings",
    "SourceSettings",
    "load_config",
]
