"""Before each removal: is the image what the manifest saw, and does its twin live?"""

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks import storage
from tasks.apply04_check_twin import RefusedError, TwinCheck, Verification, require_version
from tasks.journal import ImageRecord
from tasks.stores import FileState, Store
from tests.one_removal import IMAGE, KEEPER, Removal, happens, lay_out_removal


def refusal_of(
    removal: Removal, *, image: ImageRecord | None = None, keeper: ImageRecord | None = None
) -> str:
    with pytest.raises(RefusedError) as refusal:
        removal.check.require_twin(image or removal.image, keeper or removal.keeper)
    return str(refusal.value)


def rewrite_unseen(path: Path, content: bytes) -> None:
    """Replace a content by another one of the same size, and keep the modification time."""
    times = path.stat()
    assert len(content) == times.st_size
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture
def read_times(monkeypatch: pytest.MonkeyPatch) -> Callable[[Store], Counter[str]]:
    """Count how often each content is read."""

    def count(store: Store) -> Counter[str]:
        times: Counter[str] = Counter()
        original = store.sha256

        def sha256(url: str, state: FileState) -> str:
            times[url.rpartition("/")[2]] += 1
            return original(url, state)

        monkeypatch.setattr(store, "sha256", sha256)
        return times

    return count


def test_image_with_a_living_twin_can_go(place: str) -> None:
    removal = lay_out_removal(place)
    state = removal.check.require_twin(removal.image, removal.keeper)
    assert state == removal.state(removal.image.url)
    assert removal.files() == {"source/a.jpg": IMAGE, "source/k.jpg": KEEPER}


class TestImage:
    def test_that_is_gone_is_refused(self, place: str) -> None:
        removal = lay_out_removal(place)
        removal.delete(removal.image.url)
        assert refusal_of(removal) == f"the image is gone: {removal.image.url}"

    @pytest.mark.parametrize("is_content_read", [False, True])
    def test_of_another_size_is_refused(self, tmp_path: Path, is_content_read: bool) -> None:
        removal = lay_out_removal(str(tmp_path), is_content_read=is_content_read)
        path = tmp_path / "source/a.jpg"
        times = path.stat()
        path.write_bytes(b"short")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        etag = removal.image.etag
        assert refusal_of(removal) == (
            f"the image changed: 5 bytes and {etag}, the manifest saw 220 bytes and {etag}: "
            f"{removal.image.url}"
        )

    @pytest.mark.parametrize("is_content_read", [False, True])
    def test_of_another_time_is_refused(self, tmp_path: Path, is_content_read: bool) -> None:
        removal = lay_out_removal(str(tmp_path), is_content_read=is_content_read)
        os.utime(tmp_path / "source/a.jpg", ns=(0, 1_000_000_007))
        assert refusal_of(removal).startswith(
            "the image changed: 220 bytes and mtime_ns:1000000007, the manifest saw 220 bytes and "
        )

    def test_of_another_version_on_s3_is_refused(self, s3_url: str) -> None:
        removal = lay_out_removal(s3_url)
        removal.write(removal.image.url, bytes(220))
        assert refusal_of(removal).startswith(
            "the image changed: 220 bytes and 5632090e276f96fe6f833a2e0f75cdf9, the manifest saw "
        )

    def test_of_another_content_with_the_same_size_and_time_is_refused(
        self, tmp_path: Path
    ) -> None:
        removal = lay_out_removal(str(tmp_path))
        rewrite_unseen(tmp_path / "source/a.jpg", bytes(220))
        assert refusal_of(removal) == (
            f"the image has another content than the manifest saw: {removal.image.url}"
        )

    def test_content_of_s3_is_read_when_it_is_asked_for(self, s3_url: str) -> None:
        removal = lay_out_removal(s3_url, is_content_read=True)
        forged = removal.image.model_copy(update={"sha256": "0" * 64})
        assert refusal_of(removal, image=forged) == (
            f"the image has another content than the manifest saw: {removal.image.url}"
        )

    def test_content_is_not_read_when_the_version_must_do(
        self, tmp_path: Path, read_times: Callable[[Store], Counter[str]]
    ) -> None:
        removal = lay_out_removal(str(tmp_path), is_content_read=False)
        times = read_times(removal.store)
        removal.check.require_twin(removal.image, removal.keeper)
        assert times == {}

    @pytest.mark.parametrize("what", ["link", "folder", "pipe"])
    def test_that_is_no_file_any_more_is_refused(self, tmp_path: Path, what: str) -> None:
        removal = lay_out_removal(str(tmp_path))
        path = tmp_path / "source/a.jpg"
        path.rename(tmp_path / "moved.jpg")
        if what == "link":
            path.symlink_to(tmp_path / "moved.jpg")
        elif what == "folder":
            path.mkdir()
        else:
            os.mkfifo(path)
        assert refusal_of(removal) == (
            f"the image: a link, a folder or a device now: {removal.image.url}"
        )

    def test_that_changes_while_it_is_read_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        removal = lay_out_removal(str(tmp_path))
        happens(
            monkeypatch,
            "before",
            removal.store,
            "sha256",
            lambda: removal.write(removal.image.url, b"new"),
        )
        assert refusal_of(removal) == "the image: changed while it was read"

    def test_that_vanishes_while_it_is_read_is_refused(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        removal = lay_out_removal(place, is_content_read=True)
        happens(
            monkeypatch,
            "before",
            removal.store,
            "sha256",
            lambda: removal.delete(removal.image.url),
        )
        assert refusal_of(removal) == f"the image is gone: {removal.image.url}"


class TestKeeper:
    def test_that_is_gone_is_refused(self, place: str) -> None:
        removal = lay_out_removal(place)
        removal.delete(removal.keeper.url)
        assert refusal_of(removal) == f"its keeper is gone: {removal.keeper.url}"

    @pytest.mark.parametrize("is_content_read", [False, True])
    def test_that_is_replaced_is_refused(self, tmp_path: Path, is_content_read: bool) -> None:
        removal = lay_out_removal(str(tmp_path), is_content_read=is_content_read)
        removal.write(removal.keeper.url, b"new")
        assert refusal_of(removal).startswith("its keeper changed: 3 bytes and ")

    def test_of_another_content_with_the_same_size_and_time_is_refused(
        self, tmp_path: Path
    ) -> None:
        removal = lay_out_removal(str(tmp_path))
        rewrite_unseen(tmp_path / "source/k.jpg", bytes(220))
        assert refusal_of(removal) == (
            f"its keeper has another content than the manifest saw: {removal.keeper.url}"
        )

    def test_that_is_a_link_to_the_image_is_refused(self, tmp_path: Path) -> None:
        removal = lay_out_removal(str(tmp_path))
        (tmp_path / "source/k.jpg").unlink()
        (tmp_path / "source/k.jpg").symlink_to("a.jpg")
        assert refusal_of(removal) == (
            f"its keeper: a link, a folder or a device now: {removal.keeper.url}"
        )

    def test_whose_folder_is_a_link_now_is_refused(self, tmp_path: Path) -> None:
        removal = lay_out_removal(str(tmp_path))
        (tmp_path / "source/sub").symlink_to(".")
        keeper = removal.keeper.model_copy(
            update={"url": removal.keeper.url.replace("/k.jpg", "/sub/k.jpg")}
        )
        assert refusal_of(removal, keeper=keeper) == (
            f"its keeper: a folder on the way is a link or a file: {keeper.url}"
        )

    def test_that_vanishes_while_it_is_read_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        removal = lay_out_removal(str(tmp_path))
        happens(
            monkeypatch,
            "after",
            removal.store,
            "sha256",  # of the image
            lambda: happens(
                monkeypatch,
                "before",
                removal.store,
                "sha256",
                lambda: removal.delete(removal.keeper.url),
            ),
        )
        assert refusal_of(removal) == f"its keeper is gone: {removal.keeper.url}"


class TestBoth:
    def test_one_path_is_no_twin_of_itself(self, tmp_path: Path) -> None:
        removal = lay_out_removal(str(tmp_path))
        assert refusal_of(removal, keeper=removal.image) == (
            "the image and its keeper are one path"
        )

    def test_one_path_in_two_spellings_is_no_twin_of_itself(self, place: str) -> None:
        removal = lay_out_removal(place)
        url = removal.image.url
        url = (
            f"s3a{url[2:]}" if url.startswith("s3") else url.replace("source/", "source/../source/")
        )
        keeper = removal.image.model_copy(update={"url": url})
        assert refusal_of(removal, keeper=keeper) == "the image and its keeper are one path"

    def test_two_names_of_one_file_are_no_twins(self, tmp_path: Path) -> None:
        removal = lay_out_removal(str(tmp_path))
        (tmp_path / "source/z.jpg").hardlink_to(tmp_path / "source/a.jpg")
        keeper = removal.image.model_copy(
            update={"url": removal.image.url.replace("/a.jpg", "/z.jpg")}
        )
        assert refusal_of(removal, keeper=keeper) == (
            "the image and its keeper are two names of one file"
        )

    def test_image_outside_the_source_stays(self, tmp_path: Path) -> None:
        removal = lay_out_removal(str(tmp_path))
        check = TwinCheck(Verification(f"{removal.night.source_url}/sub", removal.store, False))
        with pytest.raises(RefusedError) as refusal:
            check.require_twin(removal.image, removal.keeper)
        assert str(refusal.value) == (
            f"not a plain path inside the source {removal.night.source_url}/sub: "
            f"{removal.image.url}"
        )

    @pytest.mark.parametrize("detour", ["./", "/", "sub/../", "../source/"])
    def test_image_by_another_spelling_of_its_path_stays(self, tmp_path: Path, detour: str) -> None:
        removal = lay_out_removal(str(tmp_path))
        (tmp_path / "source/sub").mkdir()
        image = removal.image.model_copy(
            update={"url": removal.image.url.replace("a.jpg", f"{detour}a.jpg")}
        )
        assert refusal_of(removal, image=image).startswith("not a plain path inside the source ")

    @pytest.mark.parametrize(
        ("broken", "reason"),
        [
            ({"image", "keeper", "path"}, "the image changed"),
            ({"keeper", "path"}, "its keeper changed"),
            ({"path"}, "not a plain path"),
        ],
    )
    def test_checks_come_in_their_order(
        self, tmp_path: Path, broken: set[str], reason: str
    ) -> None:
        removal = lay_out_removal(str(tmp_path))
        for what, record in (("image", removal.image), ("keeper", removal.keeper)):
            if what in broken:
                removal.write(record.url, b"new")
        image = removal.image.model_copy(
            update={"url": removal.image.url.replace("/a.jpg", "/./a.jpg")}
        )
        assert refusal_of(removal, image=image).startswith(reason)


class TestReading:
    def test_keeper_of_many_images_is_read_once(
        self, tmp_path: Path, read_times: Callable[[Store], Counter[str]]
    ) -> None:
        removal = lay_out_removal(str(tmp_path))
        times = read_times(removal.store)
        for _ in range(3):
            removal.check.require_twin(removal.image, removal.keeper)
        assert times == {"a.jpg": 3, "k.jpg": 1}

    def test_keeper_is_read_again_when_it_may_have_changed(
        self, tmp_path: Path, read_times: Callable[[Store], Counter[str]]
    ) -> None:
        removal = lay_out_removal(str(tmp_path))
        times = read_times(removal.store)
        removal.check.require_keeper(removal.keeper)
        rewrite_unseen(tmp_path / "source/k.jpg", KEEPER)
        removal.check.require_keeper(removal.keeper)
        assert times == {"k.jpg": 2}
        rewrite_unseen(tmp_path / "source/k.jpg", bytes(220))
        with pytest.raises(RefusedError, match=r"^its keeper has another content"):
            removal.check.require_keeper(removal.keeper)

    def test_wrong_keeper_stays_wrong(self, tmp_path: Path) -> None:
        removal = lay_out_removal(str(tmp_path))
        rewrite_unseen(tmp_path / "source/k.jpg", bytes(220))
        for _ in range(2):
            with pytest.raises(RefusedError, match=r"^its keeper has another content"):
                removal.check.require_keeper(removal.keeper)

    def test_keeper_is_safe_to_look_at_from_several_threads(self, tmp_path: Path) -> None:
        removal = lay_out_removal(str(tmp_path))
        with ThreadPoolExecutor(8) as pool:
            states = list(
                pool.map(lambda _: removal.check.require_keeper(removal.keeper), range(64))
            )
        assert set(states) == {removal.state(removal.keeper.url)}


class TestIsImage:
    """What was moved or copied elsewhere is told by its content; its version tag may differ."""

    @pytest.mark.parametrize("is_content_read", [False, True])
    def test_copy_is_the_image(self, tmp_path: Path, is_content_read: bool) -> None:
        removal = lay_out_removal(str(tmp_path), is_content_read=is_content_read)
        url = storage.join(removal.place, "copy.jpg")
        removal.write(url, IMAGE)
        assert removal.check.is_image(url, removal.state(url), removal.image)

    @pytest.mark.parametrize("content", [b"", IMAGE[:-1], bytes(220)])
    @pytest.mark.parametrize("is_content_read", [False, True])
    def test_other_content_is_not(
        self, tmp_path: Path, is_content_read: bool, content: bytes
    ) -> None:
        removal = lay_out_removal(str(tmp_path), is_content_read=is_content_read)
        url = storage.join(removal.place, "copy.jpg")
        removal.write(url, content)
        assert not removal.check.is_image(url, removal.state(url), removal.image)

    def test_equal_time_says_nothing_where_contents_are_read(self, tmp_path: Path) -> None:
        removal = lay_out_removal(str(tmp_path))
        rewrite_unseen(tmp_path / "source/a.jpg", bytes(220))
        state = removal.state(removal.image.url)
        assert state.etag == removal.image.etag
        assert not removal.check.is_image(removal.image.url, state, removal.image)


def test_size_and_version_must_both_be_those_of_the_manifest(tmp_path: Path) -> None:
    removal = lay_out_removal(str(tmp_path))
    state = removal.state(removal.image.url)
    require_version(state, removal.image, "the image")
    for change in ({"size_bytes": 221}, {"etag": "mtime_ns:1"}):
        with pytest.raises(RefusedError, match=r"^the image changed: 220 bytes and mtime_ns:"):
            require_version(state, removal.image.model_copy(update=change), "the image")
