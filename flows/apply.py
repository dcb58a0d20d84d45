"""The flow that carries a manifest out, for deployments; it can wait for a person's answer."""

import logging

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from config import ApplyConfig, parse_duration
from flows.acting import apply_manifest, check_guards
from flows.events import told_of_guards
from flows.logs import prepare_logs
from tasks.acting_summary import ActingSummary, acting_markdown
from tasks.apply01_plan_actions import places_of
from tasks.apply02_check_guards import Guard, require_met
from tasks.approvals import read_decision, record_decision
from tasks.errors import ActionsFailedError
from tasks.manifests import LoadedManifest, read_manifest
from tasks.summary import summary_markdown

logger = logging.getLogger(__name__)


class Answer(RunInput):
    """The form in the Prefect UI."""

    is_approved: bool = Field(default=False, title="Carry the manifest out")
    comment: str = Field(default="", title="Comment")


# Suspending needs a persisted result; the body then starts again from its top. As JSON, because
# nothing that lies on storage is ever unpickled.
@flow(
    name="apply",
    retries=0,
    persist_result=True,
    result_serializer="json",
    validate_parameters=True,
)
def apply(config: ApplyConfig) -> ActingSummary | None:
    """Carry out a manifest.

    Args:
        config: Which manifest, what to do, and what must hold before.

    Returns:
        What was done, None when a person has said no.

    Raises:
        ActionsFailedError: Images were left alone; each is named with its reason.
        DedupError: A guard is not met, the lock is held, or nothing could be done otherwise.
    """
    prepare_logs()
    with told_of_guards(config.manifest_url):
        if config.execute and config.approval == "required" and not is_approved(config):
            logger.info("rejected: nothing was done")
            return None
        summary = apply_manifest(config)
    create_markdown_artifact(key="dedup-apply", markdown=acting_markdown(summary))
    if not summary.is_clean:
        first = "; ".join(f"{each.url!r}: {each.detail}" for each in summary.problems[:3])
        raise ActionsFailedError(
            f"{summary.num_problems} of {summary.num_planned} images were left alone, "
            f"{summary.num_done} are done ({summary.apply_id}). First of them: {first}"
        )
    return summary


def is_approved(config: ApplyConfig) -> bool:
    """Ask a person, unless one has answered already; suspends the run until then."""
    manifest = read_manifest(config.manifest_url)
    guards = check_guards(manifest, places_of(manifest, config), config)
    require_met(guards)  # before a person is asked in vain
    if read_decision(manifest) is None:
        answer = suspend_flow_run(
            wait_for_input=Answer.with_initial_data(description=question(manifest, guards, config)),
            timeout=int(parse_duration(config.approval_timeout).total_seconds()),
        )
        record_decision(
            manifest,
            is_approved=answer.is_approved,
            by="the Prefect UI",
            comment=answer.comment,
        )
    decision = read_decision(manifest)
    return decision is not None and decision.is_approved


def question(manifest: LoadedManifest, guards: list[Guard], config: ApplyConfig) -> str:
    """What the person sees, as Markdown."""
    checked = "\n".join(f"- {guard}" for guard in guards)
    return (
        f"**{config.action}: {manifest.summary.num_remove:,} of "
        f"{manifest.summary.num_images:,} images?**\n\n"
        f"[Report]({manifest.summary.report_url})\n\n"
        f"{summary_markdown(manifest.summary)}\n\n{checked}\n"
    )
