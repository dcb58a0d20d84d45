"""All access to storage: list, read, publish, download. Over fsspec, local or remote."""

import atexit
import errno
import os
import secrets
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from botocore.exceptions import NoCredentialsError, PartialCredentialsError
from fsspec.implementations.local import LocalFileSystem

from tasks.errors import ArtifactError, MissingArtifactError, SourceError, StorageError
from tasks.paths import as_folder

# Stores whose upload is atomic: a reader sees the old object or the new one, never a part.
_BUCKET_PROTOCOLS = frozenset({"s3", "s3a", "gs", "gcs"})
_ATOMIC_PUT_PROTOCOLS = _BUCKET_PROTOCOLS | {"az", "abfs", "abfss", "memory"}

_EPOCH = datetime.fromtimestamp(0, UTC)

# Tries multiply: botocore's, s3fs's (which alone notices an answer that ends too early), and the
# stage's around both. So the inner ones are few, and patience lies in the stage.
_S3_CLIENT_CONFIG = {
    "connect_timeout": 10,
    "read_timeout": 30,
    "retries": {"max_attempts": 3, "mode": "standard"},
}
_S3_TRIES = 2


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file as a listing shows it."""

    url: str
    """Where it is; the name is escaped with backslashes when it is not valid UTF-8."""
    relative_path: str
    """The part of the URL below the listed folder, separated by slashes."""
    size_bytes: int
    etag: str
    """The store's version tag, or `mtime_ns:<nanoseconds since 1970>` where it has none."""
    modified_at: datetime
    """Time of the last change, in UTC."""
    is_regular: bool
    """False for links, pipes, devices."""
    is_name_valid: bool
    """False when the name is not valid UTF-8 and so cannot be kept in a table."""


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Resolve a URL to its fsspec filesystem and the path on it.

    Args:
        url: Any fsspec URL, or a local path.

    Raises:
        StorageError: The protocol is unknown or its package is not installed.
    """
    protocol = fsspec.utils.get_protocol(url)
    try:
        fs = _filesystem(protocol)
    except (ValueError, ImportError, TypeError) as error:
        raise StorageError(f"no storage for {url}: {error}") from None
    return fs, str(fs._strip_protocol(url))


@lru_cache
def _filesystem(protocol: str) -> fsspec.AbstractFileSystem:
    if protocol in ("s3", "s3a"):
        # Other processes write to the same buckets: a cached listing would be stale.
        fs = fsspec.filesystem(
            protocol,
            skip_instance_cache=True,
            use_listings_cache=False,
            config_kwargs=_S3_CLIENT_CONFIG,
        )
        fs.retries = _S3_TRIES
        return fs
    return fsspec.filesystem(protocol)


def absolute_url(url: str) -> str:
    """The one spelling of a location: with its protocol, no trailing slash, links resolved."""
    fs, path = filesystem(url)
    if is_local(fs):
        path = os.path.realpath(path)
    absolute = str(fs.unstrip_protocol(path))
    without_slash = absolute.rstrip("/")
    return absolute if without_slash.endswith(":") else without_slash


def join(url: str, *names: str) -> str:
    """Append path components to a URL."""
    return as_folder(url) + "/".join(names)


def list_files(url: str) -> list[StoredFile]:
    """List every file below a folder, sorted by URL.

    Folders behind symbolic links are not entered; linked files are listed as links.

    Args:
        url: The folder, as `absolute_url` spells it.

    Raises:
        SourceError: The folder is missing, is a file, or may not be read.
    """
    fs, root = filesystem(url)
    try:
        # An empty prefix is an empty night, but a missing folder or bucket is a mistake.
        folder = root.partition("/")[0] if _has_buckets(fs) else root
        if fs.info(folder)["type"] != "directory":
            raise SourceError(f"expected a folder of images, found a file: {url}")
        files = _list_local(fs, root) if is_local(fs) else _list_remote(fs, root)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceError(f"expected a folder of images, found nothing: {url}") from error
    except (PermissionError, NoCredentialsError, PartialCredentialsError) as error:
        raise SourceError(f"not allowed to list {url}: {error}") from error
    return sorted(files, key=lambda file: file.url)


def look_at(url: str) -> StoredFile | None:
    """Look at one file as a listing shows it; None when there is none.

    Args:
        url: The file, as `absolute_url` spells it.

    Raises:
        StorageError: It may not be looked at.
    """
    fs, path = filesystem(url)
    folder = path.rpartition("/")[0]
    try:
        if is_local(fs):
            return _local_file(fs, folder, path)
        info = fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (PermissionError, NoCredentialsError, PartialCredentialsError) as error:
        raise StorageError(f"not allowed to look at {url}: {error}") from error
    return _remote_file(fs, folder, path, info)


def _list_local(fs: LocalFileSystem, root: str) -> list[StoredFile]:
    # Not fsspec's walk: it passes silently over subfolders that it may not read.
    def fail(error: OSError) -> None:
        raise error

    files = []
    for folder, folder_names, file_names in os.walk(root, onerror=fail):
        links = [name for name in folder_names if os.path.islink(os.path.join(folder, name))]
        for name in file_names + links:
            with suppress(FileNotFoundError):  # gone since its folder was read
                files.append(_local_file(fs, root, os.path.join(folder, name)))
    return files


def _local_file(fs: LocalFileSystem, root: str, path: str) -> StoredFile:
    status = os.lstat(path)
    return _stored_file(
        fs,
        root,
        path,
        size_bytes=status.st_size,
        etag=f"mtime_ns:{status.st_mtime_ns}",
        modified_at=_EPOCH + timedelta(microseconds=status.st_mtime_ns // 1_000),
        is_regular=stat.S_ISREG(status.st_mode),
    )


def _list_remote(fs: fsspec.AbstractFileSystem, root: str) -> list[StoredFile]:
    found = fs.find(root, detail=True)
    # An emptied folder shows for a while on some stores.
    if found.get(root, {}).get("type") == "file":
        raise SourceError(f"expected a folder of images, found a file: {fs.unstrip_protocol(root)}")
    files = []
    for path, info in found.items():
        if path == root or path.endswith("/"):
            continue  # S3 consoles make empty objects that stand for folders
        files.append(_remote_file(fs, root, path, info))
    return files


def _remote_file(
    fs: fsspec.AbstractFileSystem, root: str, path: str, info: Mapping[str, Any]
) -> StoredFile:
    modified_at = _modified_at(info)
    etag = str(info.get("ETag") or info.get("etag") or "").strip('"')
    return _stored_file(
        fs,
        root,
        path,
        size_bytes=int(info["size"] or 0),
        etag=etag or f"mtime_ns:{(modified_at - _EPOCH) // timedelta(microseconds=1)}000",
        modified_at=modified_at,
        is_regular=info.get("type", "file") == "file" and not info.get("islink"),
    )


def _stored_file(
    fs: fsspec.AbstractFileSystem,
    root: str,
    path: str,
    *,
    size_bytes: int,
    etag: str,
    modified_at: datetime,
    is_regular: bool,
) -> StoredFile:
    url = str(fs.unstrip_protocol(path))
    return StoredFile(
        url=printable(url),
        relative_path=path[len(root) :].lstrip("/"),
        size_bytes=size_bytes,
        etag=etag,
        modified_at=modified_at,
        is_regular=is_regular,
        is_name_valid=printable(url) == url,
    )


def printable(url: str) -> str:
    """A URL as tables have it: escaped with backslashes where it is not valid UTF-8."""
    return url.encode("utf-8", "backslashreplace").decode("utf-8")


def _modified_at(info: Mapping[str, Any]) -> datetime:
    """The time of the last change, whatever the store calls it; 1970 when it does not say."""
    for name in ("LastModified", "last_modified", "mtime", "modified", "created"):
        modified = info.get(name)
        if isinstance(modified, datetime):
            return modified.astimezone(UTC)
        if isinstance(modified, int | float):
            return _EPOCH + timedelta(microseconds=round(modified * 1_000_000))
    return _EPOCH


def make_folder(url: str) -> None:
    """Make a folder and those above it, where the store has folders.

    Raises:
        StorageError: It cannot be made.
    """
    fs, path = filesystem(url)
    if is_local(fs):
        try:
            os.makedirs(path, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make the folder {url}: {error.strerror}") from error


def exists(url: str) -> bool:
    """Tell whether a file or folder is there."""
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def modified_at(url: str) -> datetime:
    """When a file was last changed, in UTC.

    Raises:
        FileNotFoundError: It is not there.
    """
    fs, path = filesystem(url)
    return _modified_at(fs.info(path))


def list_parquet(url: str) -> list[str]:
    """URLs of the Parquet files right in a folder, sorted; empty when there is no such folder."""
    return list_names(url, ".parquet")


def list_names(url: str, suffix: str = "") -> list[str]:
    """URLs of what lies right in a folder, sorted; empty when there is no such folder."""
    fs, path = filesystem(url)
    try:
        names = fs.ls(path, detail=False)
    except FileNotFoundError:
        return []
    return sorted(str(fs.unstrip_protocol(name)) for name in names if name.endswith(suffix))


def list_sizes(url: str, suffix: str = "") -> dict[str, int]:
    """Bytes of each file right in a folder, sorted by URL; empty when there is no such folder."""
    fs, path = filesystem(url)
    try:
        found = fs.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    sizes = {
        str(fs.unstrip_protocol(info["name"])): int(info["size"] or 0)
        for info in found
        if info["name"].endswith(suffix)
    }
    return dict(sorted(sizes.items()))


def read_bytes(url: str) -> bytes:
    """Read a whole file.

    Raises:
        FileNotFoundError: It is not there.
        StorageError: It may not be read.
        OSError: It cannot be read; `tasks.errors.is_transient` tells whether to try again.
    """
    fs, path = filesystem(url)
    try:
        content: bytes = fs.cat_file(path)
    except PermissionError as error:
        raise StorageError(f"not allowed to read {url}: {error}") from error
    return content


def publish_bytes(url: str, content: bytes) -> None:
    """Make a file appear in one step: readers see all of it or nothing.

    Args:
        url: Where; an existing file is replaced in the same single step.
        content: The whole file.

    Raises:
        StorageError: The location is not writable or full.
        OSError: Any other fault; nothing was published.
    """
    publish(url, lambda path: path.write_bytes(content))


def publish(url: str, write: Callable[[Path], object]) -> None:
    """Make a file that is written to a local path first appear in one step.

    Args:
        url: Where; an existing file is replaced in the same single step.
        write: Writes the whole file to the path it is given.

    Raises:
        StorageError: The location is not writable or full.
        OSError: Any other fault; nothing was published.
    """
    fs, path = filesystem(url)
    try:
        if is_local(fs):
            _publish_local(Path(path), write)
        else:
            _publish_remote(fs, path, write)
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise StorageError(f"cannot write {url}: {error.strerror or error}") from error
    except FileNotFoundError as error:
        raise StorageError(f"no such bucket or folder to write {url}: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ENAMETOOLONG):
            raise StorageError(f"cannot write {url}: {error.strerror}") from error
        raise


def _publish_local(target: Path, write: Callable[[Path], object]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that the rename stays on one filesystem; listings ignore the name.
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        write(aside)
        _sync(aside)
        os.replace(aside, target)
        _sync(target.parent)
    finally:
        aside.unlink(missing_ok=True)


def _publish_remote(
    fs: fsspec.AbstractFileSystem, path: str, write: Callable[[Path], object]
) -> None:
    with tempfile.TemporaryDirectory(prefix="dedup-") as folder:
        local = Path(folder) / "file"
        write(local)
        if _ATOMIC_PUT_PROTOCOLS & set(_protocols(fs)):
            fs.put_file(str(local), path)
            return
        fs.makedirs(os.path.dirname(path), exist_ok=True)
        aside = f"{path}.{secrets.token_hex(4)}.tmp"
        try:
            fs.put_file(str(local), aside)
            fs.mv(aside, path)
        except BaseException:
            if fs.exists(aside):
                fs.rm_file(aside)
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_table(url: str, table: pa.Table, *, rows_per_group: int | None = None) -> None:
    """Publish an Arrow table as Parquet (zstd); the same table gives the same bytes.

    Args:
        url: Where.
        table: The rows, with the metadata to be written.
        rows_per_group: Rows of a row group, by default Arrow's choice.

    Raises:
        StorageError: The location is not writable or full.
    """
    options = {"compression": "zstd", "write_page_checksum": True}
    if rows_per_group is not None:
        options["row_group_size"] = rows_per_group

    def write(path: Path) -> None:
        with path.open("wb") as file:
            pq.write_table(table, file, **options)

    publish(url, write)


def publish_tables(url: str, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Publish Arrow tables as the row groups of one Parquet file, without holding all of them.

    Args:
        url: Where.
        tables: Each becomes one row group.
        schema: Columns of all, with the metadata to be written.

    Raises:
        StorageError: The location is not writable or full.
    """

    def write(path: Path) -> None:
        with (
            path.open("wb") as file,
            pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer,
        ):
            for table in tables:
                writer.write_table(table, row_group_size=max(1, table.num_rows))

    publish(url, write)


def read_table(url: str, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet artifact and check that it has the columns it should have.

    Args:
        url: The file.
        schema: What it must contain; its own metadata may hold more.
        columns: The columns wanted, by default all of the schema.

    Raises:
        ArtifactError: It is missing, is not Parquet, or has other columns or types.
    """
    wanted = columns if columns is not None else schema.names
    with _open_parquet(url) as file:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        _check_columns(url, parquet.schema_arrow, schema, wanted)
        table = parquet.read(columns=wanted)
        _check_rows(url, table, parquet.metadata.num_rows)
        return table


class OpenTable:
    """A Parquet artifact that is read row group by row group, a few columns at a time."""

    def __init__(self, url: str, file: Any, schema: pa.Schema) -> None:
        self._url, self._schema = url, schema
        self._parquet = pq.ParquetFile(file, page_checksum_verification=True)
        self.metadata = _as_text(self._parquet.schema_arrow.metadata)
        self.num_rows: int = self._parquet.metadata.num_rows
        self.num_groups: int = self._parquet.num_row_groups
        groups = [self._parquet.metadata.row_group(group) for group in range(self.num_groups)]
        if (found := sum(group.num_rows for group in groups)) != self.num_rows:
            raise ArtifactError(f"expected {self.num_rows} rows, found {found}: {url}")

    def read(self, group: int, columns: list[str]) -> pa.Table:
        """Read some columns of one row group.

        Raises:
            ArtifactError: It has other columns or types, or other rows than it says.
        """
        _check_columns(self._url, self._parquet.schema_arrow, self._schema, columns)
        # One thread: whoever reads many files has as many threads already.
        table = self._parquet.read_row_group(group, columns=columns, use_threads=False)
        _check_rows(self._url, table, self._parquet.metadata.row_group(group).num_rows)
        return table


@contextmanager
def open_table(url: str, schema: pa.Schema) -> Iterator[OpenTable]:
    """Open a Parquet artifact once for several reads.

    Args:
        url: The file.
        schema: What it must contain; its own metadata may hold more.

    Raises:
        MissingArtifactError: It is not there.
        ArtifactError: It is not Parquet.
    """
    with _open_parquet(url) as file:
        yield OpenTable(url, file, schema)


def _check_rows(url: str, table: pa.Table, num_rows: int) -> None:
    table.validate(full=True)  # Arrow itself believes offsets and text
    if table.num_rows != num_rows:
        raise ArtifactError(f"expected {num_rows} rows, found {table.num_rows}: {url}")


def _check_columns(url: str, written: pa.Schema, schema: pa.Schema, wanted: list[str]) -> None:
    for name in wanted:
        times = written.names.count(name)
        found = written.field(name).type if times == 1 else ("there twice" if times else "missing")
        if found != schema.field(name).type:
            raise ArtifactError(
                f"column {name} is {found}, expected {schema.field(name).type}: {url} (damaged, or "
                "of a release whose artifacts this one does not read: run the night again)"
            )


def read_metadata(url: str) -> dict[str, str]:
    """Read the key-value metadata of a Parquet file without its rows.

    Raises:
        ArtifactError: It is missing or is not Parquet.
    """
    with _open_parquet(url) as file:
        return _as_text(pq.read_schema(file).metadata)


def _as_text(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    return {
        key.decode(errors="replace"): value.decode(errors="replace")
        for key, value in (metadata or {}).items()
    }


@contextmanager
def _open_parquet(url: str) -> Iterator[Any]:
    try:
        with open_file(url) as file:
            yield file
    except FileNotFoundError:
        raise MissingArtifactError(f"expected a Parquet file, found nothing: {url}") from None
    except IsADirectoryError:
        raise ArtifactError(f"expected a Parquet file, found a folder: {url}") from None
    except PermissionError as error:
        raise StorageError(f"not allowed to read {url}: {error}") from error
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        # Arrow says some things of a damaged file as an OSError, which then has no number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(
            f"expected a Parquet file, found something else: {url} ({reason})"
        ) from None


@contextmanager
def open_file(url: str) -> Iterator[Any]:
    """Open a file for reading bytes at random positions."""
    fs, path = filesystem(url)
    with fs.open(path, "rb") as file:
        yield file


def local_path(url: str) -> Path:
    """Give a file a local path, for readers that map it into memory.

    A local file is used in place. A remote one is downloaded once per process and removed at its
    end; so this is for artifacts of a run, whose content never changes.
    """
    fs, path = filesystem(url)
    if is_local(fs):
        return Path(path)
    with _download_lock:
        return _download(url)


_download_lock = threading.Lock()


@lru_cache
def _download(url: str) -> Path:
    fs, path = filesystem(url)
    folder = Path(tempfile.mkdtemp(prefix="dedup-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    local = folder / os.path.basename(path)
    fs.get_file(path, str(local))
    return local


def _has_buckets(fs: fsspec.AbstractFileSystem) -> bool:
    return bool(_BUCKET_PROTOCOLS & set(_protocols(fs)))


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Tell whether a filesystem is the local disk."""
    return isinstance(fs, LocalFileSystem)


def is_s3(fs: fsspec.AbstractFileSystem) -> bool:
    """Tell whether a filesystem is S3 or speaks its language."""
    return bool({"s3", "s3a"} & set(_protocols(fs)))


def _protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
