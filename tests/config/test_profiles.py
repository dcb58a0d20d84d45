"""Profiles: YAML files under what is said beside them."""

from pathlib import Path
from typing import Any, ClassVar

import pytest

from config import ApplyConfig, ConfigError, DedupConfig, load_apply_config, load_config
from config.profiles import merge

SAID: dict[str, Any] = {"source_url": "/images", "workspace_url": "/work"}


def profile(folder: Path, text: str) -> Path:
    path = folder / "profile.yaml"
    path.write_text(text)
    return path


def test_merge_lays_nested_overrides_over_nested_settings() -> None:
    base = {"a": 1, "b": {"c": 2, "d": {"e": 3, "f": 4}}, "g": {"h": 5}}
    overrides = {"a": 10, "b": {"d": {"f": 40}, "i": 6}, "g": 7}

    assert merge(base, overrides) == {
        "a": 10,
        "b": {"c": 2, "d": {"e": 3, "f": 40}, "i": 6},
        "g": 7,
    }


def test_merge_changes_neither_argument() -> None:
    base, overrides = {"a": {"b": 1}}, {"a": {"c": 2}}
    merge(base, overrides)["a"]["d"] = 3
    assert (base, overrides) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def test_merge_replaces_lists_as_a_whole() -> None:
    assert merge({"a": [1, 2]}, {"a": [3]}) == {"a": [3]}


def test_profile_fills_what_is_not_said(tmp_path: Path) -> None:
    path = profile(tmp_path, "neighbors: {eps: 0.1, n_trees: 7}\nclusters: {keepers: first}\n")
    assert load_config(path, SAID) == DedupConfig(
        source_url="/images",
        workspace_url="/work",
        neighbors={"eps": 0.1, "n_trees": 7},
        clusters={"keepers": "first"},
    )


def test_what_is_said_wins_over_the_profile_and_leaves_its_neighbours(tmp_path: Path) -> None:
    path = profile(tmp_path, "source_url: /other\nneighbors: {eps: 0.1, n_trees: 7}\n")
    config = load_config(path, SAID | {"neighbors": {"eps": 0.2}})
    assert (config.source_url, config.neighbors.eps, config.neighbors.n_trees) == (
        "/images",
        0.2,
        7,
    )


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing is set\n", "---\n", "{}"])
def test_empty_profile_sets_nothing(tmp_path: Path, text: str) -> None:
    assert load_config(profile(tmp_path, text), SAID) == load_config(None, SAID)


def test_missing_profile_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.yaml"
    with pytest.raises(ConfigError) as refusal:
        load_config(path, SAID)
    assert str(refusal.value) == f"cannot read config {path}: No such file or directory"


def test_folder_is_no_profile(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_config(tmp_path, SAID)
    assert str(refusal.value) == f"cannot read config {tmp_path}: Is a directory"


@pytest.mark.parametrize("content", [b"a: [1, 2", b"a: b: c", b"a:\n\t- b", b"\xff\xfe\x00\xd8"])
def test_profile_that_is_no_yaml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "profile.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as refusal:
        load_config(path, SAID)
    assert str(refusal.value).startswith(f"config {path} is not YAML: ")


def test_profile_never_runs_code(tmp_path: Path) -> None:
    path = profile(tmp_path, "source_url: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="is not YAML: could not determine a constructor"):
        load_config(path, SAID)


@pytest.mark.parametrize(
    ("text", "found"), [("- eps\n- 0.1\n", "['eps', 0.1]"), ("eps\n", "'eps'"), ("0", "0")]
)
def test_profile_that_is_no_mapping_is_refused(tmp_path: Path, text: str, found: str) -> None:
    path = profile(tmp_path, text)
    with pytest.raises(ConfigError) as refusal:
        load_config(path, SAID)
    assert str(refusal.value) == f"config {path}: expected a mapping of settings, found {found}"


def test_offending_setting_of_a_profile_is_named_with_the_file(tmp_path: Path) -> None:
    path = profile(tmp_path, "neighbors:\n  epz: 0.1\n")
    with pytest.raises(ConfigError) as refusal:
        load_config(path, SAID)
    assert str(refusal.value) == f"config {path}: neighbors.epz: Extra inputs are not permitted"


def test_secret_of_a_profile_is_not_repeated(tmp_path: Path) -> None:
    path = profile(tmp_path, "workspace_url: s3://key:hunter2@bucket/work\n")
    with pytest.raises(ConfigError, match="workspace_url: the URL carries credentials") as refusal:
        load_config(path, {"source_url": "/images"})
    assert "hunter2" not in str(refusal.value)


class TestApplySection:
    SAID: ClassVar[dict[str, Any]] = {"manifest_url": "/m.parquet"}

    def test_fills_what_is_not_said(self, tmp_path: Path) -> None:
        path = profile(
            tmp_path,
            "source_url: /images\nneighbors: {eps: 0.1}\n"
            "apply: {verify: content, guards: {max_manifest_age: 2d, allow_partial: true}}\n",
        )
        assert load_apply_config(path, self.SAID) == ApplyConfig(
            manifest_url="/m.parquet",
            verify="content",
            guards={"max_manifest_age": "2d", "allow_partial": True},
        )

    def test_loses_to_what_is_said_and_keeps_the_rest(self, tmp_path: Path) -> None:
        path = profile(tmp_path, "apply: {execute: true, acting: {workers: 3, lock_seconds: 9}}\n")
        said = self.SAID | {"execute": False, "acting": {"workers": 5}}
        config = load_apply_config(path, said)
        assert (config.execute, config.acting.workers, config.acting.lock_seconds) == (False, 5, 9)

    def test_is_the_one_of_a_night_too(self, tmp_path: Path) -> None:
        path = profile(tmp_path, "apply: {action: permanent}\n")
        night = load_config(path, SAID).apply
        assert night is not None
        assert night.action == load_apply_config(path, self.SAID).action == "permanent"

    @pytest.mark.parametrize("text", ["", "neighbors: {eps: 0.1}\n", "apply:\n", "apply: {}\n"])
    def test_that_is_missing_or_empty_sets_nothing(self, tmp_path: Path, text: str) -> None:
        found = load_apply_config(profile(tmp_path, text), self.SAID)
        assert found == load_apply_config(None, self.SAID) == ApplyConfig(manifest_url="/m.parquet")

    @pytest.mark.parametrize(
        ("text", "found"),
        [("apply: [1]", "[1]"), ("apply: yes", "True"), ("apply: copy", "'copy'")],
    )
    def test_that_is_no_mapping_is_refused(self, tmp_path: Path, text: str, found: str) -> None:
        path = profile(tmp_path, text)
        with pytest.raises(ConfigError) as refusal:
            load_apply_config(path, self.SAID)
        assert str(refusal.value) == f"config {path}: expected a mapping in apply, found {found}"

    def test_offending_setting_is_named_with_the_file(self, tmp_path: Path) -> None:
        path = profile(tmp_path, "apply:\n  guards: {max_removed: 1}\n")
        with pytest.raises(ConfigError) as refusal:
            load_apply_config(path, self.SAID)
        assert str(refusal.value) == (
            f"config {path}: guards.max_removed: Extra inputs are not permitted"
        )

    def test_missing_profile_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"^cannot read config .*nowhere\.yaml: No such file"):
            load_apply_config(tmp_path / "nowhere.yaml", self.SAID)

    def test_misspelt_section_does_not_waive_its_guards_in_silence(self, tmp_path: Path) -> None:
        path = profile(tmp_path, "aply: {guards: {max_removed_fraction: 0.1}}\n")
        with pytest.raises(ConfigError, match="aply"):
            load_apply_config(path, self.SAID)
