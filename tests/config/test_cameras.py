"""Settings of cameras: the first pattern that fits counts, and the rest is as everywhere."""

import pytest
from pydantic import ValidationError

from config import DedupConfig, PartitionSettings, ViewSettings

SCENE = {"compare": "scene", "region": [0.0, 0.1, 1.0, 1.0]}


def config_with(**settings: object) -> DedupConfig:
    return DedupConfig.model_validate({"source_url": "/a", "workspace_url": "/w", **settings})


def test_without_any_settings_all_partitions_are_alike() -> None:
    config = config_with(library={"window": "7d"}, neighbors={"eps": 0.04})
    assert config.of_partition("north") == PartitionSettings(
        eps=0.04, window="7d", view=ViewSettings()
    )


def test_the_first_pattern_that_is_found_counts() -> None:
    config = config_with(
        cameras=[
            {"pattern": "^tunnel", "eps": 0.02, "window": "1d"},
            {"pattern": "tunnel", "eps": 0.03},
        ]
    )
    assert config.of_partition("tunnel-1").eps == 0.02
    assert config.of_partition("tunnel-1").window == "1d"
    assert config.of_partition("old-tunnel").eps == 0.03
    assert config.of_partition("old-tunnel").window is None
    assert config.of_partition("bridge").eps == 0.05


def test_scenes_have_an_eps_of_their_own_unless_the_camera_says_another() -> None:
    config = config_with(
        neighbors={"scene_eps": 0.2},
        cameras=[
            {"pattern": "^a", "view": SCENE},
            {"pattern": "^b", "view": SCENE, "eps": 0.1},
        ],
    )
    assert config.of_partition("a").eps == 0.2
    assert config.of_partition("a").view.region == (0.0, 0.1, 1.0, 1.0)
    assert config.of_partition("b").eps == 0.1
    assert config.of_partition("c").view == ViewSettings()


def test_cameras_whose_eps_differs_are_named_by_the_pattern_that_counts() -> None:
    config = config_with(
        cameras=[
            {"pattern": "a", "eps": 0.02},
            {"pattern": "a", "eps": 0.03},
            {"pattern": "b", "eps": 0.05},
            {"pattern": "c", "view": SCENE},
        ],
        neighbors={"scene_eps": 0.2},
    )
    assert (config.eps, config.eps_of_cameras()) == (0.05, {"a": 0.02, "c": 0.2})
    assert config_with(view=SCENE, neighbors={"scene_eps": 0.2}).eps == 0.2


def test_rebuild_is_said_and_decides_nothing() -> None:
    assert config_with(rebuild=True).deciding_settings() == config_with().deciding_settings()


def test_cameras_and_view_decide() -> None:
    plain = config_with().deciding_settings()
    assert config_with(view=SCENE).deciding_settings() != plain
    assert config_with(cameras=[{"pattern": "a", "eps": 0.01}]).deciding_settings() != plain


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ({"region": [0.5, 0.0, 0.5, 1.0]}, "left < right"),
        ({"region": [0.0, 0.0, 1.0, 1.5]}, "less than or equal to 1"),
        ({"masks": [[[0, 0], [1, 1]]]}, "at least 3"),
        ({"compare": "motion"}, "'image' or 'scene'"),
        ({"regions": []}, "not permitted"),
    ],
)
def test_impossible_views_are_refused(view: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config_with(view=view)
