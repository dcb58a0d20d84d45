"""The flow that keeps a workspace tidy: fewer files, an emptier quarantine, a smaller library."""

import logging
from datetime import UTC, datetime

from prefect import flow

from config import MaintenanceConfig, parse_duration
from flows.acting import purge_quarantine
from flows.logs import prepare_logs
from tasks.compact_features import compact_features
from tasks.errors import ActionsFailedError
from tasks.merge_library import merge_libraries
from tasks.prune_library import Pruning, prune_library

logger = logging.getLogger(__name__)


@flow(name="maintenance", retries=0, validate_parameters=True)
def maintenance(config: MaintenanceConfig) -> None:
    """Tidy a workspace; nights may run beside it.

    Args:
        config: What to do.

    Raises:
        ActionsFailedError: Images in quarantine were left alone; each is named with its reason.
        DedupError: Something else that a person must mend.
    """
    prepare_logs()
    if config.prune_library_older_than is not None:
        before = datetime.now(UTC) - parse_duration(config.prune_library_older_than)
        prune_library(config.workspace_url, Pruning(captured_before=before), execute=True)
    if config.compact:
        workspace_url = config.workspace_url
        for done in [*compact_features(workspace_url), *merge_libraries(workspace_url)]:
            logger.info(
                "%d -> %d files: %s", done.num_files_before, done.num_files, done.folder_url
            )
    if config.purge_older_than is not None:
        purge(config, config.purge_older_than)


def purge(config: MaintenanceConfig, older_than: str) -> None:
    """Empty the quarantine of what has been in it for long."""
    summary = purge_quarantine(
        config.workspace_url,
        parse_duration(older_than),
        execute=True,
        allow_orphans=False,
        acting=config.acting,
    )
    logger.info("%d images in quarantine are deleted for good", summary.num_done)
    if not summary.is_clean:
        raise ActionsFailedError(
            f"{summary.num_problems} images in quarantine were left alone; the journals name them"
        )
