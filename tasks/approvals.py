"""A person's answer to a manifest, beside it: it holds for this manifest and no other."""

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks import storage
from tasks.errors import ApprovalError, ArtifactError
from tasks.journal import now, who
from tasks.manifests import LoadedManifest


class Decision(BaseModel):
    """What a person has answered."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    is_approved: bool
    by: str
    comment: str
    at: str
    manifest_digest: str


def approval_url(manifest_url: str) -> str:
    """Where the answer lies."""
    return storage.join(manifest_url.rpartition("/")[0], "approval.json")


def record_decision(manifest: LoadedManifest, *, is_approved: bool, by: str, comment: str) -> None:
    """Write an answer down; a later one replaces it.

    Args:
        manifest: What was asked about.
        is_approved: The answer.
        by: Who gave it, as far as is known; empty for the user of this process.
        comment: Whatever else was said.
    """
    decision = Decision(
        is_approved=is_approved,
        by=by or who(),
        comment=comment,
        at=now().isoformat(),
        manifest_digest=manifest.digest,
    )
    storage.publish_bytes(approval_url(manifest.url), decision.model_dump_json().encode() + b"\n")


def read_decision(manifest: LoadedManifest) -> Decision | None:
    """Read the answer to a manifest; None when nobody has given one to this very manifest.

    Raises:
        ArtifactError: The file is damaged.
    """
    url = approval_url(manifest.url)
    try:
        decision = Decision.model_validate_json(storage.read_bytes(url))
    except FileNotFoundError:
        return None
    except ValidationError:
        raise ArtifactError(f"expected an approval, found something else: {url}") from None
    return decision if decision.manifest_digest == manifest.digest else None


def require_approval(manifest: LoadedManifest) -> None:
    """Make sure that a person has agreed.

    Raises:
        ApprovalError: Nobody has answered yet, or the answer was no.
    """
    decision = read_decision(manifest)
    run_id = manifest.summary.run_id
    if decision is None:
        raise ApprovalError(
            f"run {run_id} waits for a person: dedup approve {run_id} --workspace …, or the "
            "Prefect UI; nothing was done"
        )
    if not decision.is_approved:
        comment = f": {decision.comment}" if decision.comment else ""
        raise ApprovalError(
            f"run {run_id} was rejected by {decision.by}{comment}; nothing was done"
        )
