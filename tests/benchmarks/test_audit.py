"""The audit sees what must never be: orphans, what is kept twice, undecided or lost."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.audit import audit, missing
from tests.made_runs import on_circle

TEN_DEGREES = 0.016  # as a cosine distance, a little more than that


@dataclass
class Place:
    """A source and a workspace in which contents are their own names."""

    folder: Path
    degrees: dict[str, float] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        return self.folder / "incoming" / name

    def lay_out(self, **degrees: float) -> None:
        """Write an image for each name, at an angle; `__` stands for a slash."""
        for name, angle in degrees.items():
            path = self.path(f"{name.replace('__', '/')}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(path.name)
            self.degrees[path.name] = angle
        store = self.folder / "workspace" / "features" / "f" / "all.parquet"
        store.parent.mkdir(parents=True, exist_ok=True)
        features = [on_circle(angle) for angle in self.degrees.values()]
        pq.write_table(
            pa.table({"sha256": list(map(sha, self.degrees)), "feature": features}), store
        )

    def decide(self, run: str, **keepers: str | None) -> Path:
        """Write a manifest: None for an image that stays, else whom it goes for."""
        rows = []
        for name, keeper in keepers.items():
            path = self.path(f"{name.replace('__', '/')}.jpg")
            rows.append(
                {
                    "url": f"file://{path}",
                    "sha256": sha(path.name),
                    "action": "keep" if keeper is None else "remove",
                    "keeper_url": keeper and f"file://{self.path(keeper)}.jpg",
                }
            )
        manifest = self.folder / f"{run}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), manifest)
        return manifest


def sha(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.lay_out(mon__east__a=0, mon__east__b=5, tue__east__c=30, tue__west__d=2)
    return place


def test_nights_that_keep_their_promise(place: Place) -> None:
    manifests = [
        place.decide("monday", mon__east__a=None, mon__east__b="mon/east/a"),
        place.decide("tuesday", tue__east__c=None, tue__west__d=None),
    ]
    place.path("mon/east/b.jpg").unlink()

    found = audit(place.path(""), place.folder / "workspace", manifests, eps=TEN_DEGREES)

    assert (found.num_left, found.num_unreadable, found.num_gone) == (3, 0, 1)
    assert (found.orphans, found.kept_again, found.num_beside, found.undecided) == ([], [], 0, [])


@pytest.mark.parametrize("what", ["gone", "far", "another file"])
def test_orphans_have_no_keeper_within_eps_in_its_place(place: Place, what: str) -> None:
    keeper = "tue/east/c" if what == "far" else "mon/east/a"
    manifests = [
        place.decide("monday", mon__east__a=None, mon__east__b=keeper, tue__east__c=None),
    ]
    place.path("mon/east/b.jpg").unlink()
    if what == "gone":
        place.path("mon/east/a.jpg").unlink()
    if what == "another file":
        place.path("mon/east/a.jpg").write_text("overwritten")

    found = audit(place.path(""), place.folder / "workspace", manifests, eps=TEN_DEGREES)

    assert found.orphans == [str(place.path("mon/east/b.jpg"))]


def test_what_two_runs_have_kept_is_told_from_what_one_has(place: Place) -> None:
    apart = [place.decide("monday", mon__east__a=None), place.decide("tuesday", mon__east__b=None)]
    together = [place.decide("both", mon__east__a=None, mon__east__b=None)]

    again = audit(place.path(""), place.folder / "workspace", apart, eps=TEN_DEGREES)
    beside = audit(place.path(""), place.folder / "workspace", together, eps=TEN_DEGREES)

    pair = (str(place.path("mon/east/b.jpg")), str(place.path("mon/east/a.jpg")))
    assert (again.kept_again, again.num_beside) == ([pair], 0)
    assert (beside.kept_again, beside.num_beside) == ([], 1)
    assert len(again.undecided) == 2


def test_content_that_is_nowhere_is_missing(place: Place) -> None:
    delivered = Counter({sha("a.jpg"): 1, sha("b.jpg"): 2, sha("lost.jpg"): 1})

    found = missing(delivered, place.path(""), place.folder / "quarantine")

    assert found == Counter({sha("b.jpg"): 1, sha("lost.jpg"): 1})
