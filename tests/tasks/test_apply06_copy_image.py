"""One image is copied elsewhere: all of it or nothing, and over nothing."""

import os
from pathlib import Path

import pytest

from tasks import storage
from tasks.apply04_check_twin import RefusedError, TwinCheck, Verification
from tasks.apply06_copy_image import copy_image, is_same_content
from tasks.journal import Entry
from tasks.stores import NotAFileError, store_of
from tests.one_removal import IMAGE, KEEPER, Removal, happens, lay_out_removal

SOURCE = {"source/a.jpg": IMAGE, "source/k.jpg": KEEPER}
FOREIGN = b"somebody else's"


def lay_out_copy(place: str, to_place: str | None = None) -> tuple[Removal, Entry]:
    """An image, and an entry that says to copy it to `<to_place>/copies/cluster-000000/a.jpg`."""
    removal = lay_out_removal(place)
    folder = storage.absolute_url(storage.join(to_place or place, "copies"))
    to_url = storage.join(folder, "cluster-000000", "a.jpg")
    return removal, Entry(image=removal.image, to_url=to_url, keeper=None, rule="keeper")


def copy(removal: Removal, entry: Entry) -> tuple[str, str]:
    assert entry.to_url is not None
    return copy_image(entry, removal.check, removal.store, store_of(entry.to_url))


def refusal_of(removal: Removal, entry: Entry) -> str:
    with pytest.raises(RefusedError) as refusal:
        copy(removal, entry)
    return str(refusal.value)


def test_image_is_copied_and_stays(place: str) -> None:
    removal, entry = lay_out_copy(place)
    assert copy(removal, entry) == ("done", "")
    assert removal.files() == {**SOURCE, "copies/cluster-000000/a.jpg": IMAGE}


def test_same_content_is_left_as_it_is(place: str) -> None:
    removal, entry = lay_out_copy(place)
    assert copy(removal, entry) == ("done", "")
    before = removal.state(str(entry.to_url))
    assert copy(removal, entry) == ("already", "the same content is there")
    assert removal.state(str(entry.to_url)) == before


@pytest.mark.parametrize("content", [b"", FOREIGN, bytes(len(IMAGE))])
def test_other_content_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    removal, entry = lay_out_copy(str(tmp_path))
    removal.write(str(entry.to_url), content)
    before = removal.state(str(entry.to_url))
    assert refusal_of(removal, entry) == f"another file is there already: {entry.to_url}"
    assert removal.state(str(entry.to_url)) == before
    assert removal.files() == {**SOURCE, "copies/cluster-000000/a.jpg": content}


def test_other_content_is_refused_on_s3_too(s3_url: str) -> None:
    removal, entry = lay_out_copy(s3_url)
    removal.write(str(entry.to_url), FOREIGN)
    assert refusal_of(removal, entry) == f"another file is there already: {entry.to_url}"
    assert removal.files() == {**SOURCE, "copies/cluster-000000/a.jpg": FOREIGN}


def test_file_that_appears_meanwhile_is_not_overwritten(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    removal, entry = lay_out_copy(place)
    target = store_of(str(entry.to_url))
    # On S3 a look at the place comes first, and then the condition of the request must hold.
    method = "_copy" if str(entry.to_url).startswith("s3") else "create"
    happens(
        monkeypatch, "before", target, method, lambda: removal.write(str(entry.to_url), FOREIGN)
    )
    with pytest.raises(RefusedError, match=r"^another file is there already: "):
        copy_image(entry, removal.check, removal.store, target)
    assert removal.files() == {**SOURCE, "copies/cluster-000000/a.jpg": FOREIGN}


@pytest.mark.parametrize("what", ["folder", "link", "link to nowhere"])
def test_folder_or_link_in_the_way_is_refused(tmp_path: Path, what: str) -> None:
    removal, entry = lay_out_copy(str(tmp_path))
    path = tmp_path / "copies/cluster-000000/a.jpg"
    path.parent.mkdir(parents=True)
    if what == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / ("source/k.jpg" if what == "link" else "nowhere.jpg"))
    with pytest.raises(NotAFileError) as refusal:
        copy(removal, entry)
    assert str(refusal.value) == f"a link, a folder or a device now: {entry.to_url}"
    assert removal.files() == SOURCE


@pytest.mark.parametrize("what", ["file", "link"])
def test_folder_of_the_copies_that_is_none_is_refused(tmp_path: Path, what: str) -> None:
    removal, entry = lay_out_copy(str(tmp_path))
    (tmp_path / "copies").mkdir()
    if what == "file":
        (tmp_path / "copies/cluster-000000").write_bytes(FOREIGN)
    else:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "copies/cluster-000000").symlink_to(tmp_path / "elsewhere")
    assert "a folder on the way is a link or a file" in refusal_of(removal, entry)
    assert {name for name in removal.files() if "a.jpg" in name} == {"source/a.jpg"}


def test_changed_image_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    removal, entry = lay_out_copy(str(tmp_path))
    removal.write(removal.image.url, FOREIGN)
    assert refusal_of(removal, entry).startswith("the image changed: 15 bytes and ")
    assert removal.files() == {**SOURCE, "source/a.jpg": FOREIGN}


def test_image_that_is_gone_is_refused(tmp_path: Path) -> None:
    removal, entry = lay_out_copy(str(tmp_path))
    removal.delete(removal.image.url)
    assert refusal_of(removal, entry) == f"the image is gone: {removal.image.url}"
    assert removal.files() == {"source/k.jpg": KEEPER}


@pytest.mark.parametrize("event", ["changes", "vanishes"])
def test_image_that_changes_or_vanishes_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    removal, entry = lay_out_copy(str(tmp_path))
    target = store_of(str(entry.to_url))

    def act() -> None:
        if event == "changes":
            removal.write(removal.image.url, FOREIGN)
        else:
            removal.delete(removal.image.url)

    happens(monkeypatch, "before", target, "copy", act)
    with pytest.raises(RefusedError, match=r"^the image(: changed while it was| is gone)"):
        copy_image(entry, removal.check, removal.store, target)
    assert not [name for name in removal.files() if name.startswith("copies/")]


def test_image_that_changes_meanwhile_is_refused_on_s3_too(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    removal, entry = lay_out_copy(s3_url)
    happens(
        monkeypatch,
        "before",
        removal.store,
        "copy",
        lambda: removal.write(removal.image.url, FOREIGN),
    )
    assert refusal_of(removal, entry) == "the image: changed while it was copied"
    assert removal.files() == {**SOURCE, "source/a.jpg": FOREIGN}


def test_path_that_leads_elsewhere_has_no_copy(tmp_path: Path) -> None:
    removal, entry = lay_out_copy(str(tmp_path))
    entry = entry.model_copy(update={"to_url": None})
    with pytest.raises(RefusedError) as refusal:
        copy_image(entry, removal.check, removal.store, removal.store)
    assert str(refusal.value) == f"not a plain path: {removal.image.url}"


def test_local_copy_has_the_time_of_the_image(tmp_path: Path) -> None:
    removal, entry = lay_out_copy(str(tmp_path))
    os.utime(tmp_path / "source/a.jpg", ns=(0, 1_767_225_600_000_001_999))
    image = removal.image.model_copy(update={"etag": "mtime_ns:1767225600000001999"})
    assert copy(removal, entry.model_copy(update={"image": image})) == ("done", "")
    copied = (tmp_path / "copies/cluster-000000/a.jpg").stat()
    assert copied.st_mtime_ns == 1_767_225_600_000_001_000


def test_local_copy_of_an_image_on_s3_has_its_time_too(tmp_path: Path, s3_url: str) -> None:
    removal, entry = lay_out_copy(s3_url, str(tmp_path))
    modified_at = removal.state(removal.image.url).modified_at
    assert copy(removal, entry) == ("done", "")
    assert modified_at.microsecond == 0  # S3 tells whole seconds, the disk would not
    assert storage.modified_at(str(entry.to_url)) == modified_at


def test_local_copy_is_a_file_of_its_own(tmp_path: Path) -> None:
    removal, entry = lay_out_copy(str(tmp_path))
    copy(removal, entry)
    (tmp_path / "copies/cluster-000000/a.jpg").write_bytes(b"edited")
    assert (tmp_path / "source/a.jpg").read_bytes() == IMAGE


class TestAcrossStores:
    @pytest.fixture(params=["local to s3", "s3 to local"])
    def copying(self, request: pytest.FixtureRequest, tmp_path: Path, s3_url: str) -> "Across":
        places = (str(tmp_path), s3_url)
        removal, entry = lay_out_copy(
            *(places if request.param == "local to s3" else reversed(places))
        )
        return Across(removal, entry)

    def test_image_is_copied_once(self, copying: "Across") -> None:
        assert copy(copying.removal, copying.entry) == ("done", "")
        assert copying.copied() == IMAGE
        assert copying.removal.files() == SOURCE
        assert copy(copying.removal, copying.entry) == ("already", "the same content is there")

    def test_other_content_is_refused_and_left_as_it_is(self, copying: "Across") -> None:
        storage.publish_bytes(str(copying.entry.to_url), FOREIGN)
        assert refusal_of(copying.removal, copying.entry) == (
            f"another file is there already: {copying.entry.to_url}"
        )
        assert copying.copied() == FOREIGN

    def test_content_that_the_manifest_never_saw_is_refused(self, copying: "Across") -> None:
        verification = Verification(
            copying.removal.night.source_url, copying.removal.store, is_content_read=False
        )
        check = TwinCheck(verification)
        image = copying.entry.image.model_copy(update={"sha256": "0" * 64})
        target = store_of(str(copying.entry.to_url))
        with pytest.raises(RefusedError) as refusal:
            copy_image(
                copying.entry.model_copy(update={"image": image}),
                check,
                copying.removal.store,
                target,
            )
        assert str(refusal.value) == "the image has another content than the manifest saw"
        assert target.stat(str(copying.entry.to_url)) is None


class Across:
    """A copy from one store to the other."""

    def __init__(self, removal: Removal, entry: Entry) -> None:
        self.removal, self.entry = removal, entry

    def copied(self) -> bytes:
        return storage.read_bytes(str(self.entry.to_url))


def test_missing_bucket_of_the_copies_is_not_blamed_on_the_image(
    tmp_path: Path, s3_url: str
) -> None:
    removal, entry = lay_out_copy(str(tmp_path), "s3://no-such-bucket-anywhere")
    with pytest.raises((RefusedError, OSError)) as refusal:
        copy(removal, entry)
    assert "the image is gone" not in str(refusal.value)


def test_content_is_compared_whatever_the_size(place: str) -> None:
    url = storage.join(storage.absolute_url(place), "a.jpg")
    store = store_of(url)
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert not is_same_content(store, url, empty)
    storage.publish_bytes(url, b"")
    assert is_same_content(store, url, empty)
    assert not is_same_content(store, url, "0" * 64)
