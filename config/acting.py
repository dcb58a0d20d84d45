"""The settings of acting on a manifest: what to do, and what must hold before it is done."""

from typing import Literal, Self

from pydantic import Field, model_validator

from config.fields import Duration, Settings, Url


class GuardSettings(Settings):
    """What must hold before anything is touched, and what may be waived."""

    allow_partial: bool = False
    """Act on the manifest of a night whose shards failed in part."""

    allow_orphans: bool = False
    """Remove images whose keeper is no twin within eps (`keepers: first` makes such), and empty
    the quarantine of images whose keeper is gone."""

    allow_gated: bool = False
    """Remove images that the change gate judged by another frame (reason `within eps, gated`), so
    that a small change, such as a dark car on a dark road, may not have been seen at all."""

    allow_unlocked: bool = False
    """Remove images on a store that ignores conditional writes, where no lock can hold."""

    max_removed_fraction: float = Field(default=0.98, ge=0.0, le=1.0)
    """Largest share of the readable images that may be removed, overall and in each partition."""

    max_manifest_age: Duration = "7d"
    """How long after it was written a manifest may still be acted on."""


class ActingSettings(Settings):
    """How acting is carried out."""

    workers: int = Field(default=16, ge=1, le=256)
    """Images acted on at the same time."""

    images_per_batch: int = Field(default=500, ge=1, le=10_000)
    """Images whose intents are written to the journal in one go, before the first is touched."""

    lock_seconds: float = Field(default=60.0, ge=1.0, le=3_600.0)
    """A lock whose owner has not renewed it for so long is taken over."""


class ApplySettings(Settings):
    """What to do with a manifest."""

    action: Literal["quarantine", "permanent", "copy"] = "quarantine"
    """`quarantine` moves the images to remove to where `dedup undo` finds them, `permanent`
    deletes them for good, `copy` groups all images in folders elsewhere and removes nothing."""

    copy_to_url: Url | None = None
    """Folder that `copy` fills: any local path or S3 URL."""

    only: Literal["all", "keep"] = "all"
    """`copy` takes all images, one folder per cluster, or only those to keep, without folders."""

    quarantine_url: Url | None = None
    """Folder for the quarantine, on the same store as the images; by default in the workspace."""

    verify: Literal["auto", "content", "version"] = "auto"
    """How an image is told to be the one that the manifest saw: `version` compares size and
    version tag (or modification time), `content` its SHA-256 as well. `auto` is `content` for
    local files and `version` on S3, whose tags change with every write."""

    execute: bool = False
    """False says what would be done and changes nothing."""

    approval: Literal["never", "required"] = "never"
    """`required` waits for a person's answer, in the Prefect UI or by `dedup approve`."""

    approval_timeout: Duration = "3d"
    """How long to wait for it; then the run fails and nothing is changed."""

    guards: GuardSettings = GuardSettings()
    acting: ActingSettings = ActingSettings()

    @model_validator(mode="after")
    def _copy_says_where(self) -> Self:
        if (self.action == "copy") != (self.copy_to_url is not None):
            raise ValueError("copy_to_url goes with action: copy, and only with it")
        if self.only == "keep" and self.action != "copy":
            raise ValueError("only: keep goes with action: copy")
        return self


class ApplyConfig(ApplySettings):
    """One run of the `apply` flow."""

    manifest_url: Url
    """The manifest to act on."""

    workspace_url: Url | None = None
    """Workspace for journal and quarantine; by default the one that the manifest lies in."""
