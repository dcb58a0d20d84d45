"""A person's answer to a manifest: kept beside it, for this manifest alone."""

import pytest

from tasks import storage
from tasks.approvals import approval_url, read_decision, record_decision, require_approval
from tasks.errors import ApprovalError, ArtifactError
from tasks.manifests import LoadedManifest, read_manifest
from tests.written_nights import write_night


@pytest.fixture
def manifest(place: str) -> LoadedManifest:
    return read_manifest(write_night(place, {"a.jpg": ["b.jpg"]}).manifest_url)


def test_nobody_has_answered_at_first(manifest: LoadedManifest) -> None:
    assert read_decision(manifest) is None
    with pytest.raises(ApprovalError, match="waits for a person: dedup approve night-0123456789"):
        require_approval(manifest)


def test_answer_is_read_back(manifest: LoadedManifest) -> None:
    record_decision(manifest, is_approved=True, by="Ada", comment="fine")
    decision = read_decision(manifest)
    assert decision is not None
    assert (decision.is_approved, decision.by, decision.comment) == (True, "Ada", "fine")
    assert decision.manifest_digest == manifest.digest
    require_approval(manifest)


def test_later_answer_wins(manifest: LoadedManifest) -> None:
    record_decision(manifest, is_approved=True, by="Ada", comment="")
    record_decision(manifest, is_approved=False, by="Bob", comment="wait")
    with pytest.raises(ApprovalError, match="was rejected by Bob: wait; nothing was done"):
        require_approval(manifest)


def test_unnamed_answer_is_the_users(manifest: LoadedManifest) -> None:
    record_decision(manifest, is_approved=True, by="", comment="")
    decision = read_decision(manifest)
    assert decision is not None
    assert "@" in decision.by


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"is_approved": "yes"}', b"\xff"])
def test_damaged_answer_is_no_answer(manifest: LoadedManifest, content: bytes) -> None:
    storage.publish_bytes(approval_url(manifest.url), content)
    with pytest.raises(ArtifactError, match="expected an approval"):
        require_approval(manifest)
