"""What a run can be told: frozen models and the YAML profiles that fill them."""

from config.acting import (
    ActingSettings,
    ApplyConfig,
    ApplySettings,
    GuardSettings,
)
from config.alerts import AlertSettings
from config.cameras import CameraSettings, ViewSettings
from config.fields import parse_duration
from config.maintenance import MaintenanceConfig
from config.models import (
    ClusterSettings,
    DedupConfig,
    ExecutionSettings,
    FeatureSettings,
    GateSettings,
    LibrarySettings,
    NeighborSettings,
    PartitionSettings,
    SourceSettings,
)
from config.profiles import ConfigError, load_apply_config, load_config

__all__ = [
    "ActingSettings",
    "AlertSettings",
    "ApplyConfig",
    "ApplySettings",
    "CameraSettings",
    "ClusterSettings",
    "ConfigError",
    "DedupConfig",
    "ExecutionSettings",
    "FeatureSettings",
    "GateSettings",
    "GuardSettings",
    "LibrarySettings",
    "MaintenanceConfig",
    "NeighborSettings",
    "PartitionSettings",
    "SourceSettings",
    "ViewSettings",
    "load_apply_config",
    "load_config",
    "parse_duration",
]
