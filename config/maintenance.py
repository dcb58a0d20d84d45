"""The settings of the maintenance of a workspace: data only, as all settings are."""

from config.acting import ActingSettings
from config.fields import Duration, Settings, Url


class MaintenanceConfig(Settings):
    """What the `maintenance` flow does to a workspace; by default it only merges small files."""

    workspace_url: Url
    """Workspace: a local path or an S3 URL."""

    compact: bool = True
    """Merge the small files of the feature stores and of the libraries."""

    purge_older_than: Duration | None = None
    """Delete for good what has been in quarantine for so long and whose keeper still lives."""

    prune_library_older_than: Duration | None = None
    """Let the library forget images that were captured so long ago."""

    acting: ActingSettings = ActingSettings()
