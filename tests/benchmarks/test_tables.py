"""What the figures of the benchmarks look like in docs/."""

import json
from pathlib import Path

from benchmarks.tables import table, write_docs

RUN = {
    "images": 62_500,
    "seconds_to_clusters": 3.06,
    "peak_bytes": 2**30,
    "recall": 0.99999984,
    "clusters": 3_107,
    "largest": 20_000,
    "kept": 7_451,
    "kept_first_come": 7_631,
    "kept_at_least": None,
}
SCIKIT = {
    "images": 5_000,
    "seconds": 0.36,
    "seconds_scikit": 0.57,
    "peak_bytes": 2**29,
    "peak_bytes_scikit": 2**30,
    "labels_equal": True,
}
EMBEDDING = {
    "engine": "tensorflow",
    "dtype": "bfloat16",
    "image_size": 224,
    "images_per_second": {"a": 10.0, "b": 9.5},
    "ratios": {"b/a": 0.95, "b/c": 2.5},
}
NIGHTS = {
    "nights": [{"night": "first night", "embedded": 300, "seconds": 40.0}],
    "times_its_share": 1.1,
    "share_of_new": 0.1,
    "embedding_times_its_share": 1.02,
}
OVERHEAD = {
    "num_images": 500,
    "image_size": 32,
    "num_shards": 8,
    "overhead_seconds": 0.5,
    "overhead_ratio": 1.04,
    "full_size_ratio": 1.0101,
}


def test_table() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_docs_hold_every_figure_that_lies_there(tmp_path: Path) -> None:
    figures = {
        "embedding-tensorflow": EMBEDDING,
        "neighbors": {"runs": [RUN], "scikit": [SCIKIT], "growth_exponent": 1.21},
        "second-night": NIGHTS,
        "overhead": OVERHEAD,
        "library-growth": {
            "images": 1_000,
            "runs": [{"library": 10_000, "seconds": 0.4, "peak_mib": 394}],
            "exponent": 0.9,
        },
        "large-night": {"images": 100_000, "peak_gib": 2.5},
    }
    for name, values in figures.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))

    write_docs(tmp_path, tmp_path / "docs")

    text = (tmp_path / "docs/benchmarks.md").read_text()
    for row in (
        "| tensorflow bfloat16 224 | 9.5 | 0.95 | 2.50 | - |",
        "| 62,500 | 3.1 | 1.00 | 1.000000 | 3,107 | 20,000 | 7,451 | 7,631 | - |",
        "| 5,000 | 0.4 | 0.6 | 0.50 | 1.00 | equal |",
        "Seconds grow like images to the power 1.21.",
        "| first night | 300 | 40.0 |",
        "| 500 | 32 | 8 | 0.50 | 1.040 | 1.0101 |",
        "| 10,000 | 0.40 | 394 |",
        "These seconds grow like the library to the power 0.9.",
        "| peak_gib | 2.5 |",
    ):
        assert row in text
    assert json.loads((tmp_path / "docs/benchmarks.json").read_text()) == figures
    first = (tmp_path / "docs/neighbors.svg").read_bytes()
    write_docs(tmp_path, tmp_path / "docs")
    assert (tmp_path / "docs/neighbors.svg").read_bytes() == first


def test_no_figures_no_tables(tmp_path: Path) -> None:
    write_docs(tmp_path, tmp_path / "docs")
    assert "##" not in (tmp_path / "docs/benchmarks.md").read_text()
