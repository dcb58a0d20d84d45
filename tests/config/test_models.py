"""Settings: strict about names and ranges, and never the place where a secret leaks."""

from datetime import date
from typing import Any

import pytest
from pydantic import ValidationError

from config import ConfigError, DedupConfig, load_config

URLS = {"source_url": "/images", "workspace_url": "/work"}


def config(**settings: Any) -> DedupConfig:
    return load_config(None, URLS | settings)


def complaint(**settings: Any) -> str:
    with pytest.raises(ConfigError) as refusal:
        config(**settings)
    return str(refusal.value)


def test_only_the_two_urls_are_needed() -> None:
    assert config() == DedupConfig(source_url="/images", workspace_url="/work")
    with pytest.raises(ConfigError) as refusal:
        load_config(None, {})
    assert str(refusal.value) == "config: source_url: Field required; workspace_url: Field required"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"sauce_url": "/images"}, "sauce_url"),
        ({"source": {"sufixes": [".jpg"]}}, "source.sufixes"),
        ({"features": {"size": 224}}, "features.size"),
        ({"neighbors": {"epsilon": 0.1}}, "neighbors.epsilon"),
        ({"clusters": {"eps": 0.1}}, "clusters.eps"),
        ({"execution": {"worker": 2}}, "execution.worker"),
        ({"apply": {"guard": {}}}, "apply.guard"),
        ({"apply": {"guards": {"allow_all": True}}}, "apply.guards.allow_all"),
        ({"apply": {"manifest_url": "/m.parquet"}}, "apply.manifest_url"),
    ],
)
def test_unknown_setting_is_named_with_its_path(settings: dict[str, Any], name: str) -> None:
    assert complaint(**settings) == f"config: {name}: Extra inputs are not permitted"


def test_every_offending_setting_is_named_at_once() -> None:
    message = complaint(neighbors={"eps": 2, "n_trees": 0}, clusters={"keepers": "best"})
    assert message == (
        "config: neighbors.eps: Input should be less than or equal to 1; "
        "neighbors.n_trees: Input should be greater than or equal to 1; "
        "clusters.keepers: Input should be 'cover' or 'first'"
    )


@pytest.mark.parametrize("eps", [-0.001, 1.001, float("inf"), float("nan"), "near", None])
def test_eps_outside_its_range_is_refused(eps: object) -> None:
    assert complaint(neighbors={"eps": eps}).startswith("config: neighbors.eps: Input should be")


@pytest.mark.parametrize("eps", [0, 0.05, 1])
def test_eps_may_be_as_small_and_as_large_as_its_range(eps: float) -> None:
    assert config(neighbors={"eps": eps}).neighbors.eps == eps


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("features", "power", 0),
        ("features", "gem_p", 0.5),
        ("features", "image_size", 31),
        ("features", "pooling", "sum"),
        ("features", "dtype", "float16"),
        ("features", "engine", "onnx"),
        ("neighbors", "min_recall", 1.1),
        ("neighbors", "seed", 2**31),
        ("clusters", "min_samples", 0),
        ("execution", "images_per_shard", 0),
        ("execution", "workers", 0),
        ("execution", "batch_size", 0),
        ("execution", "task_runner", "spark"),
        ("execution", "max_retries", 11),
        ("execution", "retry_delay_seconds", -1),
    ],
)
def test_settings_out_of_range_are_refused(section: str, name: str, value: object) -> None:
    assert complaint(**{section: {name: value}}).startswith(f"config: {section}.{name}: Input")


def test_cluster_address_is_for_clusters() -> None:
    address = "tcp://scheduler:8786"
    said = {"task_runner": "dask", "cluster_address": address}
    assert config(execution=said).execution.cluster_address == address
    assert complaint(execution={"cluster_address": address}) == (
        "config: execution: cluster_address needs task_runner dask or ray, found threads"
    )


def test_eight_bits_are_openvinos() -> None:
    assert complaint(features={"dtype": "int8"}) == (
        "config: features: dtype int8 goes with engine openvino, found tensorflow"
    )
    assert config(features={"dtype": "int8", "engine": "openvino"}).features.dtype == "int8"


@pytest.mark.parametrize("name", ["source_url", "workspace_url"])
@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAKEY:hunter2@bucket/night",
        "https://hunter2@example.com/night",
        "ftp://camera:hunter2@10.0.0.1:21/",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(name: str, url: str) -> None:
    message = complaint(**{name: url})
    assert message.startswith(f"config: {name}: the URL carries credentials")
    assert "AWS_SECRET_ACCESS_KEY" in message
    assert "hunter2" not in message
    assert "AKIAKEY" not in message


def test_credentials_are_refused_when_the_secret_has_a_slash() -> None:
    with pytest.raises(ConfigError, match="the URL carries credentials"):
        config(source_url="s3://AKIAKEY:hunter/2@bucket/night")


def test_secret_is_not_in_the_message_of_the_model_itself() -> None:
    with pytest.raises(ValidationError) as refusal:
        DedupConfig(source_url="s3://AKIAKEY:hunter2@bucket/night", workspace_url="/work")
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    "url", ["/mnt/a@b/night", "s3://bucket/a@b.jpg", "s3://bucket/x:y@z", "./relative", "a b"]
)
def test_at_signs_in_paths_are_no_credentials(url: str) -> None:
    assert config(source_url=url).source_url == url


def test_empty_url_is_refused() -> None:
    message = complaint(source_url="")
    assert message == "config: source_url: String should have at least 1 character"


def test_bad_regular_expression_is_refused_with_what_is_wrong_with_it() -> None:
    assert complaint(source={"partition_by": "^(camera"}) == (
        "config: source.partition_by: not a regular expression: "
        "missing ), unterminated subpattern at position 1"
    )


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../../etc/passwd"])
def test_unknown_time_zone_is_refused(name: str) -> None:
    assert complaint(time_zone=name) == (
        f"config: time_zone: expected an IANA time zone such as Europe/Berlin, found {name!r}"
    )


def test_suffixes_start_with_a_dot_and_are_compared_in_lower_case() -> None:
    assert config(source={"suffixes": [".JPG", ".Png"]}).source.suffixes == (".jpg", ".png")
    assert complaint(source={"suffixes": ["jpg"]}) == (
        "config: source.suffixes.0: expected a suffix that starts with a dot, found 'jpg'"
    )


def test_unknown_templates_are_refused_by_name() -> None:
    message = complaint(source_url="s3://bucket/{date}/{hour}/{camera}")
    assert message.endswith("source_url knows {date} and {yesterday}, found {camera}, {hour}")


@pytest.mark.parametrize(
    ("day", "filled"),
    [
        (date(2026, 5, 17), "s3://bucket/2026-05-17/of/2026-05-16"),
        (date(2026, 5, 1), "s3://bucket/2026-05-01/of/2026-04-30"),
        (date(2026, 1, 1), "s3://bucket/2026-01-01/of/2025-12-31"),
        (date(2028, 3, 1), "s3://bucket/2028-03-01/of/2028-02-29"),
    ],
)
def test_for_night_fills_date_and_yesterday(day: date, filled: str) -> None:
    before = config(source_url="s3://bucket/{date}/of/{yesterday}")
    assert before.for_night(day).source_url == filled
    assert before.source_url == "s3://bucket/{date}/of/{yesterday}"


def test_for_night_fills_a_template_wherever_it_stands_and_nothing_else() -> None:
    before = config(source_url="/{date}/{date}.d", neighbors={"eps": 0.1})
    after = before.for_night(date(2026, 1, 2))
    assert after == config(source_url="/2026-01-02/2026-01-02.d", neighbors={"eps": 0.1})
    assert config().for_night(date(2026, 1, 2)) == config()


def test_deciding_settings_hold_no_url_and_no_execution() -> None:
    assert config(source={"suffixes": [".jpg"]}).deciding_settings() == {
        "source": {"suffixes": [".jpg"], "partition_by": None, "settle": "0s"},
        "features": {
            "pooling": "avg",
            "gem_p": 3.0,
            "power": 0.5,
            "image_size": 224,
            "engine": "tensorflow",
            "dtype": "auto",
            "max_image_pixels": 89_478_485,
            "max_file_bytes": 268_435_456,
        },
        "gate": {"enabled": False, "max_change": 16, "max_error": 0.02, "sample_fraction": 0.05},
        "neighbors": {
            "eps": 0.05,
            "scene_eps": 0.03,
            "exact_up_to": 20_000,
            "min_recall": 0.999,
            "num_recall_samples": 1_000,
            "n_trees": 30,
            "seed": 0,
        },
        "clusters": {"min_samples": 2, "keepers": "cover"},
        "library": {"enabled": True, "window": None},
        "view": {"compare": "image", "region": None, "masks": []},
        "cameras": [],
    }


def test_settings_of_execution_cost_and_acting_decide_nothing() -> None:
    other = config(
        workspace_url="/elsewhere",
        price_per_image=0.05,
        time_zone="Europe/Berlin",
        execution={"workers": 1, "batch_size": 3, "weights_path": "/weights.h5"},
        apply={"action": "permanent", "execute": True},
    )
    assert other.deciding_settings() == config().deciding_settings()


def test_nothing_is_acted_on_unless_that_is_said() -> None:
    assert config().apply is None
    said = config(apply={}).apply
    assert said is not None
    assert (said.action, said.execute) == ("quarantine", False)


def test_what_is_said_of_acting_is_checked_with_the_night() -> None:
    assert complaint(apply={"action": "copy"}) == (
        "config: apply: copy_to_url goes with action: copy, and only with it"
    )


@pytest.mark.parametrize(
    "section", [None, "source", "features", "neighbors", "clusters", "execution"]
)
def test_settings_are_frozen(section: str | None) -> None:
    model = getattr(config(), section) if section else config()
    name = next(iter(type(model).model_fields))
    with pytest.raises(ValidationError, match="Instance is frozen"):
        setattr(model, name, getattr(model, name))
