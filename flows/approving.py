"""A person's answer from the command line."""

import logging

from tasks import storage
from tasks.approvals import record_decision
from tasks.manifests import LoadedManifest, manifest_url_of, read_manifest

logger = logging.getLogger(__name__)


def answer(workspace_url: str, run_id: str, *, is_approved: bool, comment: str) -> LoadedManifest:
    """Write an answer down beside the manifest, and wake the runs that wait for it.

    Args:
        workspace_url: The workspace of the run.
        run_id: The run whose manifest was asked about.
        is_approved: The answer.
        comment: Whatever else there is to say.

    Raises:
        ArtifactError: There is no such manifest, or it is damaged.
    """
    manifest = read_manifest(manifest_url_of(workspace_url, run_id))
    record_decision(manifest, is_approved=is_approved, by="", comment=comment)
    for run in wake(manifest.url, is_approved=is_approved, comment=comment):
        logger.info("resumed the flow run %s", run)
    return manifest


def wake(manifest_url: str, *, is_approved: bool, comment: str) -> list[str]:
    """Resume the suspended `apply` runs of a manifest, where a Prefect server is configured.

    Returns:
        Their names.
    """
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        return []
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType

    with get_client(sync_client=True) as client:
        paused = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=["apply"])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED]))
            ),
        )
        waiting = [
            run
            for run in paused
            if storage.absolute_url(run.parameters["config"]["manifest_url"]) == manifest_url
        ]
        for run in waiting:
            client.resume_flow_run(
                run.id, run_input={"is_approved": is_approved, "comment": comment}
            )
    return [run.name for run in waiting]
