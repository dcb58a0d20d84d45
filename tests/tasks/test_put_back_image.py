"""Undo: an image comes back to its place, over nothing, and is never lost on the way."""

import shutil
from pathlib import Path

import pytest

from tasks.apply04_check_twin import RefusedError, TwinCheck, Verification
from tasks.put_back_image import put_back_image
from tests.one_removal import IMAGE, KEEPER, Removal, happens, lay_out_removal

AWAY = {"away/a.jpg": IMAGE, "source/k.jpg": KEEPER}
BACK = {"source/a.jpg": IMAGE, "source/k.jpg": KEEPER}
FOREIGN = b"somebody else's"


def lay_out_quarantined(place: str) -> Removal:
    removal = lay_out_removal(place)
    removal.store.move(removal.image.url, removal.to_url, removal.state(removal.image.url))
    assert removal.files() == AWAY
    return removal


def put_back(removal: Removal, *, is_in_doubt: bool = False) -> tuple[str, str]:
    return put_back_image(removal.entry, removal.check, removal.store, is_in_doubt=is_in_doubt)


def refusal_of(removal: Removal, *, is_in_doubt: bool = False) -> str:
    with pytest.raises(RefusedError) as refusal:
        put_back(removal, is_in_doubt=is_in_doubt)
    return str(refusal.value)


def test_image_comes_back_and_nothing_stays_in_quarantine(place: str) -> None:
    removal = lay_out_quarantined(place)
    before = removal.state(removal.to_url)
    assert put_back(removal) == ("done", "")
    assert removal.files() == BACK
    assert removal.state(removal.image.url).etag == before.etag == removal.image.etag


def test_folder_of_the_image_is_made_again(tmp_path: Path) -> None:
    removal = lay_out_quarantined(str(tmp_path))
    shutil.rmtree(tmp_path / "source")
    assert put_back(removal) == ("done", "")
    assert removal.files() == {"source/a.jpg": IMAGE}


@pytest.mark.parametrize("is_in_doubt", [False, True])
def test_image_that_is_in_its_place_is_there_already(tmp_path: Path, is_in_doubt: bool) -> None:
    removal = lay_out_removal(str(tmp_path))
    assert put_back(removal, is_in_doubt=is_in_doubt) == ("already", "in its place")
    assert removal.files() == BACK


@pytest.mark.parametrize("is_in_doubt", [False, True])
def test_image_that_is_nowhere_is_not_said_to_be_back(tmp_path: Path, is_in_doubt: bool) -> None:
    removal = lay_out_quarantined(str(tmp_path))
    removal.delete(removal.to_url)
    assert refusal_of(removal, is_in_doubt=is_in_doubt) == (
        "neither in its place nor where it was moved to"
    )


def test_other_file_in_its_place_is_not_said_to_be_the_image(place: str) -> None:
    removal = lay_out_quarantined(place)
    removal.delete(removal.to_url)
    removal.write(removal.image.url, FOREIGN)
    refusal_of(removal)
    assert removal.files() == {"source/a.jpg": FOREIGN, "source/k.jpg": KEEPER}


def test_image_that_was_deleted_for_good_is_refused(tmp_path: Path) -> None:
    removal = lay_out_removal(str(tmp_path))
    removal.delete(removal.image.url)
    entry = removal.entry.model_copy(update={"to_url": None})
    with pytest.raises(RefusedError, match=r"^deleted for good$"):
        put_back_image(entry, removal.check, removal.store, is_in_doubt=False)


def test_image_that_was_never_deleted_is_in_its_place(s3_url: str) -> None:
    removal = lay_out_removal(s3_url, "permanent")
    assert removal.entry.to_url is None
    assert put_back(removal, is_in_doubt=True) == ("already", "in its place")


@pytest.mark.parametrize("is_in_doubt", [False, True])
@pytest.mark.parametrize("content", [b"", FOREIGN, bytes(len(IMAGE))])
def test_what_is_not_the_image_stays_in_quarantine(
    tmp_path: Path, content: bytes, is_in_doubt: bool
) -> None:
    removal = lay_out_quarantined(str(tmp_path))
    removal.write(removal.to_url, content)
    assert refusal_of(removal, is_in_doubt=is_in_doubt) == (
        f"what lies in quarantine is not the image: {removal.to_url}"
    )
    assert removal.files() == {**AWAY, "away/a.jpg": content}


def test_new_file_in_its_place_is_not_overwritten(place: str) -> None:
    removal = lay_out_quarantined(place)
    removal.write(removal.image.url, FOREIGN)
    for is_in_doubt in (False, True):
        assert refusal_of(removal, is_in_doubt=is_in_doubt) == (
            f"a file has appeared in its place: {removal.image.url}"
        )
        assert removal.files() == {**AWAY, "source/a.jpg": FOREIGN}


def test_same_content_in_its_place_is_somebody_s_own_file_unless_an_undo_ended_halfway(
    place: str,
) -> None:
    removal = lay_out_quarantined(place)
    removal.store.copy(removal.to_url, removal.image.url, removal.state(removal.to_url))
    assert refusal_of(removal) == f"a file has appeared in its place: {removal.image.url}"
    assert removal.files() == {**BACK, **AWAY}
    assert put_back(removal, is_in_doubt=True) == ("done", "")
    assert removal.files() == BACK


@pytest.mark.parametrize("is_in_doubt", [False, True])
def test_undo_that_was_killed_between_its_two_steps_is_ended(
    tmp_path: Path, is_in_doubt: bool
) -> None:
    removal = lay_out_quarantined(str(tmp_path))
    (tmp_path / "source/a.jpg").hardlink_to(tmp_path / "away/a.jpg")
    assert put_back(removal, is_in_doubt=is_in_doubt) == ("done", "")
    assert removal.files() == BACK


def test_file_that_appears_meanwhile_is_not_overwritten(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    removal = lay_out_quarantined(place)
    happens(
        monkeypatch,
        "before",
        removal.store,
        "put_back",
        lambda: removal.write(removal.image.url, FOREIGN),
    )
    assert refusal_of(removal) == f"there is a file already: {removal.image.url}"
    assert removal.files() == {**AWAY, "source/a.jpg": FOREIGN}


def test_what_changes_in_quarantine_meanwhile_stays_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removal = lay_out_quarantined(str(tmp_path))
    happens(
        monkeypatch,
        "before",
        removal.store,
        "put_back",
        lambda: removal.write(removal.to_url, FOREIGN),
    )
    assert refusal_of(removal) == "changed while it was put back"
    assert removal.files() == {**AWAY, "away/a.jpg": FOREIGN}


def test_what_changes_in_quarantine_while_it_is_discarded_is_not_said_to_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removal = lay_out_quarantined(str(tmp_path))
    removal.write(removal.image.url, IMAGE)
    happens(
        monkeypatch,
        "before",
        removal.store,
        "discard",
        lambda: removal.write(removal.to_url, FOREIGN),
    )
    with pytest.raises((RefusedError, OSError)):
        put_back(removal, is_in_doubt=True)
    assert removal.files() == {**BACK, "away/a.jpg": FOREIGN}


def test_link_in_the_place_of_its_folder_is_not_followed(tmp_path: Path) -> None:
    removal = lay_out_quarantined(str(tmp_path))
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    (tmp_path / "source").symlink_to("elsewhere")
    with pytest.raises(Exception, match=r"^a folder on the way is a link or a file: "):
        put_back(removal)
    assert removal.files() == {"away/a.jpg": IMAGE, "elsewhere/k.jpg": KEEPER}


def test_image_outside_the_source_is_not_put_anywhere(tmp_path: Path) -> None:
    removal = lay_out_quarantined(str(tmp_path))
    check = TwinCheck(Verification(f"{removal.night.source_url}/sub", removal.store, True))
    with pytest.raises(RefusedError, match=r"^not a plain path inside the source "):
        put_back_image(removal.entry, check, removal.store, is_in_doubt=False)
    assert removal.files() == AWAY


def test_image_put_aside_by_a_deletion_that_was_killed_comes_back(tmp_path: Path) -> None:
    removal = lay_out_removal(str(tmp_path), "permanent")
    removal.store.move(removal.image.url, removal.to_url, removal.state(removal.image.url))
    assert put_back(removal, is_in_doubt=True) == ("done", "")
    assert removal.files() == BACK
