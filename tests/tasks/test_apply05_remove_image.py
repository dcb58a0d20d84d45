"""One image goes, into quarantine or for good, whatever happens at the same moment."""

import os
import shutil
from pathlib import Path

import pytest

from tasks import storage
from tasks.apply04_check_twin import RefusedError
from tasks.apply05_remove_image import quarantine_image, remove_image
from tests.one_removal import IMAGE, KEEPER, Removal, happens, lay_out_removal

BEFORE = {"source/a.jpg": IMAGE, "source/k.jpg": KEEPER}
AFTER = {"away/a.jpg": IMAGE, "source/k.jpg": KEEPER}
FOREIGN = b"somebody else's"


def quarantine(removal: Removal, *, is_in_doubt: bool = False) -> tuple[str, str]:
    return quarantine_image(removal.entry, removal.check, removal.store, is_in_doubt=is_in_doubt)


def refusal_of(removal: Removal, *, is_in_doubt: bool = False) -> str:
    with pytest.raises(RefusedError) as refusal:
        quarantine(removal, is_in_doubt=is_in_doubt)
    return str(refusal.value)


def move(removal: Removal) -> None:
    """What an attempt does that does not live to write its outcome."""
    removal.store.move(removal.image.url, removal.to_url, removal.state(removal.image.url))


class TestQuarantine:
    def test_image_is_moved_and_nothing_else_changes(self, place: str) -> None:
        removal = lay_out_removal(place)
        assert removal.files() == BEFORE
        assert quarantine(removal) == ("done", "")
        assert removal.files() == AFTER

    @pytest.mark.parametrize("missing", ["keeper", "to_url"])
    def test_image_without_keeper_or_place_stays(self, tmp_path: Path, missing: str) -> None:
        removal = lay_out_removal(str(tmp_path))
        entry = removal.entry.model_copy(update={missing: None})
        with pytest.raises(RefusedError, match=r"^no keeper or no place in quarantine$"):
            quarantine_image(entry, removal.check, removal.store, is_in_doubt=False)
        assert removal.files() == BEFORE

    @pytest.mark.parametrize("is_in_doubt", [False, True])
    def test_image_whose_keeper_is_gone_stays(self, tmp_path: Path, is_in_doubt: bool) -> None:
        removal = lay_out_removal(str(tmp_path))
        removal.delete(removal.keeper.url)
        assert refusal_of(removal, is_in_doubt=is_in_doubt) == (
            f"its keeper is gone: {removal.keeper.url}"
        )
        assert removal.files() == {"source/a.jpg": IMAGE}

    def test_changed_image_stays(self, place: str) -> None:
        removal = lay_out_removal(place)
        removal.write(removal.image.url, FOREIGN)
        assert refusal_of(removal).startswith("the image changed: 15 bytes and ")
        assert removal.files() == {"source/a.jpg": FOREIGN, "source/k.jpg": KEEPER}

    @pytest.mark.parametrize("is_in_doubt", [False, True])
    def test_image_that_is_gone_is_refused(self, tmp_path: Path, is_in_doubt: bool) -> None:
        removal = lay_out_removal(str(tmp_path))
        removal.delete(removal.image.url)
        assert refusal_of(removal, is_in_doubt=is_in_doubt) == (
            f"the image is gone: {removal.image.url}"
        )

    @pytest.mark.parametrize("is_in_doubt", [False, True])
    def test_file_that_is_in_quarantine_is_not_overwritten(
        self, place: str, is_in_doubt: bool
    ) -> None:
        removal = lay_out_removal(place)
        removal.write(removal.to_url, FOREIGN)
        assert removal.to_url in refusal_of(removal, is_in_doubt=is_in_doubt)
        assert removal.files() == {**BEFORE, "away/a.jpg": FOREIGN}

    def test_image_that_vanishes_while_it_is_moved_is_refused(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        removal = lay_out_removal(place)
        happens(
            monkeypatch,
            "before",
            removal.store,
            "move",
            lambda: removal.delete(removal.image.url),
        )
        assert refusal_of(removal) in (
            f"the image is gone: {removal.image.url}",
            "the image: changed while it was copied",
        )
        assert removal.files() == {"source/k.jpg": KEEPER}

    def test_image_that_is_replaced_while_it_is_moved_stays(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        removal = lay_out_removal(place)
        happens(
            monkeypatch,
            "before",
            removal.store,
            "move",
            lambda: removal.write(removal.image.url, FOREIGN),
        )
        assert refusal_of(removal).startswith("the image: changed while it was ")
        assert removal.files() == {"source/a.jpg": FOREIGN, "source/k.jpg": KEEPER}

    def test_image_whose_folder_becomes_a_link_stays(self, tmp_path: Path) -> None:
        removal = lay_out_removal(str(tmp_path))
        (tmp_path / "source").rename(tmp_path / "elsewhere")
        (tmp_path / "source").symlink_to("elsewhere")
        assert refusal_of(removal).startswith("the image: a folder on the way is a link")
        assert removal.files() == {"elsewhere/a.jpg": IMAGE, "elsewhere/k.jpg": KEEPER}

    def test_quarantine_behind_a_link_takes_nothing(self, tmp_path: Path) -> None:
        removal = lay_out_removal(str(tmp_path))
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "away").symlink_to("elsewhere")
        assert refusal_of(removal).startswith("the image: a folder on the way is a link")
        assert removal.files() == BEFORE


class TestKeeperChangesMeanwhile:
    """Had the keeper gone while the image was moved, the image would be the last of its kind."""

    def test_image_is_put_back_when_its_keeper_vanishes(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        removal = lay_out_removal(place)
        happens(
            monkeypatch, "after", removal.store, "move", lambda: removal.delete(removal.keeper.url)
        )
        assert refusal_of(removal) == f"its keeper is gone: {removal.keeper.url}"
        assert removal.files() == {"source/a.jpg": IMAGE}

    def test_image_is_put_back_when_its_keeper_is_replaced(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        removal = lay_out_removal(str(tmp_path))
        happens(
            monkeypatch,
            "after",
            removal.store,
            "move",
            lambda: removal.write(removal.keeper.url, FOREIGN),
        )
        assert refusal_of(removal).startswith("its keeper changed: 15 bytes")
        assert removal.files() == {"source/a.jpg": IMAGE, "source/k.jpg": FOREIGN}

    def test_image_is_put_back_when_its_keeper_is_rewritten_with_the_same_time_and_size(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        removal = lay_out_removal(str(tmp_path))
        keeper = tmp_path / "source/k.jpg"

        def rewrite() -> None:
            times = keeper.stat()
            keeper.write_bytes(bytes(len(KEEPER)))
            os.utime(keeper, ns=(times.st_atime_ns, times.st_mtime_ns))

        happens(monkeypatch, "after", removal.store, "move", rewrite)
        assert refusal_of(removal).startswith("its keeper has another content than the manifest")
        assert removal.files() == {"source/a.jpg": IMAGE, "source/k.jpg": bytes(len(KEEPER))}

    def test_image_is_put_back_when_its_keeper_vanishes_while_it_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        removal = lay_out_removal(str(tmp_path))

        def touch_and_vanish_later() -> None:
            (tmp_path / "source/k.jpg").chmod(0o600)  # so that its content is read again
            happens(
                monkeypatch,
                "before",
                removal.store,
                "sha256",
                lambda: removal.delete(removal.keeper.url),
            )

        happens(monkeypatch, "after", removal.store, "move", touch_and_vanish_later)
        assert refusal_of(removal) == f"its keeper is gone: {removal.keeper.url}"
        assert removal.files() == {"source/a.jpg": IMAGE}

    def test_image_waits_where_it_is_said_to_when_its_place_is_taken_too(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        removal = lay_out_removal(place)

        def replace() -> None:
            removal.delete(removal.keeper.url)
            removal.write(removal.image.url, FOREIGN)

        happens(monkeypatch, "after", removal.store, "move", replace)
        with pytest.raises(OSError, match="its keeper is gone") as failure:
            quarantine(removal)
        assert str(failure.value) == (
            f"its keeper is gone: {removal.keeper.url}, and the image waits at {removal.to_url}: "
            f"there is a file already: {removal.image.url}"
        )
        assert removal.files() == {"away/a.jpg": IMAGE, "source/a.jpg": FOREIGN}

    def test_image_that_cannot_be_put_back_is_not_refused_because_undo_would_forget_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        removal = lay_out_removal(str(tmp_path))

        def replace_folder() -> None:
            (tmp_path / "source").rename(tmp_path / "elsewhere")
            (tmp_path / "source").symlink_to("elsewhere")

        happens(monkeypatch, "after", removal.store, "move", replace_folder)
        with pytest.raises(OSError, match=f"the image waits at {removal.to_url}"):
            quarantine(removal)
        assert removal.files() == {"away/a.jpg": IMAGE, "elsewhere/k.jpg": KEEPER}


class TestInDoubt:
    def test_image_that_was_never_moved_is_moved(self, tmp_path: Path) -> None:
        removal = lay_out_removal(str(tmp_path))
        assert quarantine(removal, is_in_doubt=True) == ("done", "")
        assert removal.files() == AFTER

    def test_image_that_was_moved_already_is_done(self, place: str) -> None:
        removal = lay_out_removal(place)
        move(removal)
        assert quarantine(removal, is_in_doubt=True) == ("done", "")
        assert removal.files() == AFTER

    def test_image_that_was_moved_already_comes_back_when_its_keeper_is_gone(
        self, tmp_path: Path
    ) -> None:
        removal = lay_out_removal(str(tmp_path))
        move(removal)
        removal.delete(removal.keeper.url)
        assert refusal_of(removal, is_in_doubt=True) == f"its keeper is gone: {removal.keeper.url}"
        assert removal.files() == {"source/a.jpg": IMAGE}

    def test_image_in_both_places_ends_in_quarantine(self, place: str) -> None:
        removal = lay_out_removal(place)
        removal.store.copy(removal.image.url, removal.to_url, removal.state(removal.image.url))
        assert quarantine(removal, is_in_doubt=True) == ("done", "")
        assert removal.files() == AFTER

    def test_image_under_both_names_ends_in_quarantine(self, tmp_path: Path) -> None:
        removal = lay_out_removal(str(tmp_path))
        (tmp_path / "away").mkdir()
        (tmp_path / "away/a.jpg").hardlink_to(tmp_path / "source/a.jpg")
        assert quarantine(removal, is_in_doubt=True) == ("done", "")
        assert removal.files() == AFTER

    def test_image_in_both_places_stays_when_its_keeper_is_gone(self, tmp_path: Path) -> None:
        removal = lay_out_removal(str(tmp_path))
        removal.store.copy(removal.image.url, removal.to_url, removal.state(removal.image.url))
        removal.delete(removal.keeper.url)
        assert refusal_of(removal, is_in_doubt=True) == f"its keeper is gone: {removal.keeper.url}"
        assert removal.files()["source/a.jpg"] == IMAGE

    def test_file_that_was_moved_instead_of_the_image_comes_back(self, tmp_path: Path) -> None:
        removal = lay_out_removal(str(tmp_path))
        removal.write(removal.image.url, FOREIGN)
        move(removal)
        assert refusal_of(removal, is_in_doubt=True).startswith("the image changed: 15 bytes")
        assert removal.files() == {"source/a.jpg": FOREIGN, "source/k.jpg": KEEPER}

    def test_new_file_in_the_place_of_a_moved_image_is_left_alone(self, place: str) -> None:
        removal = lay_out_removal(place)
        move(removal)
        removal.write(removal.image.url, FOREIGN)
        assert quarantine(removal, is_in_doubt=True) == ("done", "")
        assert removal.files() == {**AFTER, "source/a.jpg": FOREIGN}

    @pytest.mark.parametrize("kind", ["folder", "link"])
    def test_folder_or_link_in_the_place_of_a_moved_image_is_left_alone(
        self, tmp_path: Path, kind: str
    ) -> None:
        removal = lay_out_removal(str(tmp_path))
        move(removal)
        if kind == "folder":
            (tmp_path / "source/a.jpg").mkdir()
        else:
            (tmp_path / "source/a.jpg").symlink_to("k.jpg")
        assert quarantine(removal, is_in_doubt=True) == ("done", "")
        assert removal.files() == AFTER

    def test_image_whose_folder_is_gone_is_done(self, tmp_path: Path) -> None:
        removal = lay_out_removal(str(tmp_path))
        move(removal)
        shutil.move(tmp_path / "source/k.jpg", tmp_path / "k.jpg")
        (tmp_path / "source").rmdir()
        assert refusal_of(removal, is_in_doubt=True) == f"its keeper is gone: {removal.keeper.url}"
        assert removal.files() == {"k.jpg": KEEPER, "source/a.jpg": IMAGE}


class TestForGood:
    def test_image_is_deleted_and_nothing_else_changes(self, place: str) -> None:
        removal = lay_out_removal(place, "permanent")
        assert remove(removal) == ("done", "")
        assert removal.files() == {"source/k.jpg": KEEPER}

    def test_image_without_keeper_stays(self, tmp_path: Path) -> None:
        removal = lay_out_removal(str(tmp_path), "permanent")
        entry = removal.entry.model_copy(update={"keeper": None})
        with pytest.raises(RefusedError, match=r"^no keeper$"):
            remove_image(entry, removal.check, removal.store, is_in_doubt=False)
        assert removal.files() == BEFORE

    @pytest.mark.parametrize("is_in_doubt", [False, True])
    def test_image_whose_keeper_is_gone_stays(self, tmp_path: Path, is_in_doubt: bool) -> None:
        removal = lay_out_removal(str(tmp_path), "permanent")
        removal.delete(removal.keeper.url)
        with pytest.raises(RefusedError, match=r"^its keeper is gone: "):
            remove(removal, is_in_doubt=is_in_doubt)
        assert removal.files() == {"source/a.jpg": IMAGE}

    def test_image_whose_keeper_changed_stays_on_s3(self, s3_url: str) -> None:
        removal = lay_out_removal(s3_url, "permanent")
        removal.write(removal.keeper.url, FOREIGN)
        with pytest.raises(RefusedError, match=r"^its keeper changed: 15 bytes"):
            remove(removal)
        assert removal.files() == {"source/a.jpg": IMAGE, "source/k.jpg": FOREIGN}

    def test_image_that_is_gone_was_deleted_by_an_earlier_attempt(self, place: str) -> None:
        removal = lay_out_removal(place, "permanent")
        removal.delete(removal.image.url)
        assert remove(removal, is_in_doubt=True) == (
            "already",
            "gone, most likely by an earlier attempt",
        )

    def test_image_that_is_gone_without_an_attempt_is_refused(self, tmp_path: Path) -> None:
        removal = lay_out_removal(str(tmp_path), "permanent")
        removal.delete(removal.image.url)
        with pytest.raises(RefusedError, match=r"^the image is gone: "):
            remove(removal)

    def test_image_that_is_replaced_meanwhile_stays(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        removal = lay_out_removal(place, "permanent")
        method = "remove" if removal.entry.to_url is None else "move"
        happens(
            monkeypatch,
            "before",
            removal.store,
            method,
            lambda: removal.write(removal.image.url, FOREIGN),
        )
        with pytest.raises(RefusedError, match=r"^the image: changed while it was (moved|removed)"):
            remove(removal)
        assert removal.files() == {"source/a.jpg": FOREIGN, "source/k.jpg": KEEPER}

    def test_image_comes_back_when_its_keeper_vanishes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        removal = lay_out_removal(str(tmp_path), "permanent")
        happens(
            monkeypatch, "after", removal.store, "move", lambda: removal.delete(removal.keeper.url)
        )
        with pytest.raises(RefusedError, match=r"^its keeper is gone: "):
            remove(removal)
        assert removal.files() == {"source/a.jpg": IMAGE}

    def test_image_that_was_put_aside_already_is_deleted(self, tmp_path: Path) -> None:
        removal = lay_out_removal(str(tmp_path), "permanent")
        move(removal)
        assert remove(removal, is_in_doubt=True) == ("done", "")
        assert removal.files() == {"source/k.jpg": KEEPER}

    def test_image_that_was_put_aside_comes_back_when_its_keeper_is_gone(
        self, tmp_path: Path
    ) -> None:
        removal = lay_out_removal(str(tmp_path), "permanent")
        move(removal)
        removal.delete(removal.keeper.url)
        with pytest.raises(RefusedError, match=r"^its keeper is gone: "):
            remove(removal, is_in_doubt=True)
        assert removal.files() == {"source/a.jpg": IMAGE}

    def test_new_file_in_the_place_of_an_image_put_aside_is_left_alone(
        self, tmp_path: Path
    ) -> None:
        removal = lay_out_removal(str(tmp_path), "permanent")
        move(removal)
        removal.write(removal.image.url, FOREIGN)
        assert remove(removal, is_in_doubt=True) == ("done", "")
        assert removal.files() == {"source/a.jpg": FOREIGN, "source/k.jpg": KEEPER}

    def test_link_in_the_place_of_an_image_put_aside_is_left_alone(self, tmp_path: Path) -> None:
        removal = lay_out_removal(str(tmp_path), "permanent")
        move(removal)
        (tmp_path / "source/a.jpg").symlink_to("k.jpg")
        assert remove(removal, is_in_doubt=True) == ("done", "")
        assert removal.files() == {"source/k.jpg": KEEPER}
        assert (tmp_path / "source/a.jpg").is_symlink()

    @pytest.mark.parametrize("is_in_doubt", [False, True])
    def test_file_that_is_in_the_way_is_not_overwritten(
        self, tmp_path: Path, is_in_doubt: bool
    ) -> None:
        removal = lay_out_removal(str(tmp_path), "permanent")
        removal.write(removal.to_url, FOREIGN)
        with pytest.raises(RefusedError, match=removal.to_url):
            remove(removal, is_in_doubt=is_in_doubt)
        aside = removal.to_url[len(removal.place) + 1 :]
        assert removal.files() == {**BEFORE, aside: FOREIGN}

    def test_image_that_is_written_to_while_it_is_deleted_is_not_said_to_be_gone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        removal = lay_out_removal(str(tmp_path), "permanent")
        with (tmp_path / "source/a.jpg").open("ab") as camera:

            def write_on() -> None:
                camera.write(b"more")
                camera.flush()

            happens(monkeypatch, "before", removal.store, "discard", write_on)
            with pytest.raises((RefusedError, OSError)):
                remove(removal)
        # Nothing of what the camera wrote is lost, wherever it is now.
        assert IMAGE + b"more" in removal.files().values()


def remove(removal: Removal, *, is_in_doubt: bool = False) -> tuple[str, str]:
    return remove_image(removal.entry, removal.check, removal.store, is_in_doubt=is_in_doubt)


def test_image_waits_under_a_hidden_name_while_it_is_deleted(tmp_path: Path) -> None:
    removal = lay_out_removal(str(tmp_path), "permanent")
    folder, _, name = removal.to_url.rpartition("/")
    assert folder == storage.absolute_url(str(tmp_path / "source"))
    assert name.startswith(".image-dedup.removing-")


def test_image_is_deleted_on_s3_without_waiting_anywhere(s3_url: str) -> None:
    assert lay_out_removal(s3_url, "permanent").entry.to_url is None
