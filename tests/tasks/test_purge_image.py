"""Purge: an image leaves the quarantine for good only while its keeper lives."""

import os
from pathlib import Path

import pytest

from tasks import storage
from tasks.apply04_check_twin import RefusedError
from tasks.purge_image import purge_image
from tests.one_removal import IMAGE, KEEPER, Removal, happens, lay_out_removal

AWAY = {"away/a.jpg": IMAGE, "source/k.jpg": KEEPER}
FOREIGN = b"somebody else's"


def lay_out_quarantined(place: str) -> Removal:
    removal = lay_out_removal(place)
    removal.store.move(removal.image.url, removal.to_url, removal.state(removal.image.url))
    return removal


def purge(removal: Removal, *, allow_orphans: bool = False) -> tuple[str, str]:
    return purge_image(removal.entry, removal.check, removal.store, allow_orphans=allow_orphans)


def refusal_of(removal: Removal, *, allow_orphans: bool = False) -> str:
    with pytest.raises(RefusedError) as refusal:
        purge(removal, allow_orphans=allow_orphans)
    return str(refusal.value)


def test_image_is_deleted_and_its_keeper_stays(place: str) -> None:
    removal = lay_out_quarantined(place)
    assert purge(removal) == ("done", "")
    assert removal.files() == {"source/k.jpg": KEEPER}
    assert purge(removal) == ("already", "not in quarantine")


def test_image_whose_keeper_is_gone_stays_unless_that_is_allowed(place: str) -> None:
    removal = lay_out_quarantined(place)
    removal.delete(removal.keeper.url)
    assert refusal_of(removal) == f"its keeper is gone: {removal.keeper.url}"
    assert removal.files() == {"away/a.jpg": IMAGE}
    assert purge(removal, allow_orphans=True) == ("done", "")
    assert removal.files() == {}


def test_image_whose_keeper_is_of_an_earlier_night_is_deleted(place: str) -> None:
    removal = lay_out_quarantined(place)
    url = storage.join(storage.absolute_url(place), "earlier", "k.jpg")
    removal.write(url, KEEPER)
    earlier = {"url": url, "etag": removal.state(url).etag}
    entry = removal.entry.model_copy(update={"keeper": removal.keeper.model_copy(update=earlier)})
    assert purge_image(entry, removal.check, removal.store, allow_orphans=False) == ("done", "")
    assert removal.files() == {"source/k.jpg": KEEPER, "earlier/k.jpg": KEEPER}


def test_image_whose_keeper_changed_stays(place: str) -> None:
    removal = lay_out_quarantined(place)
    removal.write(removal.keeper.url, FOREIGN)
    assert refusal_of(removal).startswith("its keeper changed: 15 bytes and ")
    assert removal.files() == {"away/a.jpg": IMAGE, "source/k.jpg": FOREIGN}


def test_image_whose_keeper_has_another_content_stays(tmp_path: Path) -> None:
    removal = lay_out_quarantined(str(tmp_path))
    keeper = tmp_path / "source/k.jpg"
    times = keeper.stat()
    keeper.write_bytes(bytes(len(KEEPER)))
    os.utime(keeper, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert refusal_of(removal).startswith("its keeper has another content than the manifest saw")
    assert removal.files()["away/a.jpg"] == IMAGE


@pytest.mark.parametrize("allow_orphans", [False, True])
@pytest.mark.parametrize("content", [b"", FOREIGN, bytes(len(IMAGE))])
def test_what_is_not_the_image_stays(tmp_path: Path, content: bytes, allow_orphans: bool) -> None:
    removal = lay_out_quarantined(str(tmp_path))
    removal.write(removal.to_url, content)
    assert refusal_of(removal, allow_orphans=allow_orphans) == (
        f"what lies in quarantine is not the image: {removal.to_url}"
    )
    assert removal.files() == {**AWAY, "away/a.jpg": content}


@pytest.mark.parametrize("missing", ["keeper", "to_url"])
def test_image_without_keeper_or_place_stays(tmp_path: Path, missing: str) -> None:
    removal = lay_out_quarantined(str(tmp_path))
    entry = removal.entry.model_copy(update={missing: None})
    with pytest.raises(RefusedError, match=r"^no place in quarantine or no keeper$"):
        purge_image(entry, removal.check, removal.store, allow_orphans=True)
    assert removal.files() == AWAY


def test_file_that_changes_meanwhile_stays(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    removal = lay_out_quarantined(place)
    happens(
        monkeypatch,
        "before",
        removal.store,
        "discard",
        lambda: removal.write(removal.to_url, FOREIGN),
    )
    assert refusal_of(removal) == f"changed while it was deleted: {removal.to_url}"
    assert removal.files() == {**AWAY, "away/a.jpg": FOREIGN}


def test_image_that_vanishes_while_it_is_read_was_not_deleted_by_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removal = lay_out_quarantined(str(tmp_path))
    happens(monkeypatch, "before", removal.store, "sha256", lambda: removal.delete(removal.to_url))
    with pytest.raises((RefusedError, FileNotFoundError)):
        purge(removal)
    assert purge(removal) == ("already", "not in quarantine")


def test_keeper_that_is_the_quarantined_file_itself_is_no_living_twin(tmp_path: Path) -> None:
    removal = lay_out_quarantined(str(tmp_path))
    entry = removal.entry.model_copy(
        update={"keeper": removal.image.model_copy(update={"url": removal.to_url})}
    )
    with pytest.raises(RefusedError):
        purge_image(entry, removal.check, removal.store, allow_orphans=False)
    assert removal.files() == AWAY
