"""Whether a run begins anew, and why."""

import pytest

from config import FeatureSettings
from tasks import feature_store, storage
from tasks.beginning import why_anew
from tasks.feature_store import feature_metadata, store_url
from tasks.schemas import FEATURES

OURS = FeatureSettings(image_size=224, dtype="float32")


def publish_features(workspace: str, settings: FeatureSettings) -> None:
    table = FEATURES.empty_table().replace_schema_metadata(feature_metadata(settings))
    storage.publish_table(f"{store_url(workspace, settings)}/a.parquet", table)


def test_first_night_of_a_workspace_has_nothing_to_say(place: str) -> None:
    assert why_anew(storage.absolute_url(place), OURS) == []


def test_what_differs_is_named_until_there_is_a_feature_of_our_own(place: str) -> None:
    workspace = storage.absolute_url(place)
    publish_features(workspace, FeatureSettings(image_size=112, dtype="float32"))
    publish_features(workspace, FeatureSettings(image_size=224, dtype="bfloat16"))
    assert why_anew(workspace, OURS) == ["dtype float32, was bfloat16", "image_size 224, was 112"]
    publish_features(workspace, OURS)
    assert why_anew(workspace, OURS) == []


def test_other_weights_and_other_code_are_named(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = storage.absolute_url(place)
    with monkeypatch.context() as patched:
        patched.setattr(feature_store, "WEIGHTS_DIGEST", "0" * 64)
        publish_features(workspace, OURS)
    (why,) = why_anew(workspace, OURS)
    assert why == f"weights_digest {feature_store.WEIGHTS_DIGEST}, was {'0' * 64}"


def test_code_that_nothing_names_is_said_to_be_another(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = storage.absolute_url(place)
    publish_features(workspace, OURS)
    monkeypatch.setattr(feature_store, "STAGE_VERSION", 99)
    assert why_anew(workspace, OURS) == ["the code that makes features is another"]
