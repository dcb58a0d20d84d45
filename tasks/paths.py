"""Locations as text: what lies below what, and how it is called from there."""

import posixpath
import re


def as_folder(url: str) -> str:
    """A URL with a slash at its end, as all URLs below it begin."""
    return url if url.endswith("/") else f"{url}/"


def is_below(url: str, folder_url: str) -> bool:
    """Tell whether a URL is a folder or lies anywhere in it, going by its text."""
    return url == folder_url or url.startswith(as_folder(folder_url))


def is_inside(url: str, folder_url: str) -> bool:
    """Tell whether a URL still lies in a folder once `.`, `..` and `//` in it are followed."""
    if not is_below(url, folder_url):
        return False
    followed = posixpath.normpath(relative_to(url, folder_url))
    return not followed.startswith("/") and followed.split("/")[0] not in (".", "..")


def relative_to(url: str, folder_url: str) -> str:
    """The part of a URL below a folder."""
    return url[len(as_folder(folder_url)) :]


def is_spelt_once(url: str) -> bool:
    """Tell whether a folder's URL is spelt as a listing spells it.

    No slash at its end, and on a disk an absolute path without empty, `.` or `..` components.
    """
    scheme, _, path = url.partition("://")
    if scheme == "file":
        return path == "/" or (path.startswith("/") and is_plain(path[1:]))
    return bool(scheme and path) and not url.endswith("/")


def is_plain(relative_path: str) -> bool:
    """Tell whether a path has one spelling only: no empty, `.` or `..` component, no NUL."""
    return "\0" not in relative_path and not {"", ".", ".."} & set(relative_path.split("/"))


def folders_between(url: str, folder_url: str) -> list[str]:
    """The folders from a folder down to the one that holds a URL, both included."""
    names = relative_to(url, folder_url).split("/")[:-1]
    below = ["/".join(names[: depth + 1]) for depth in range(len(names))]
    return [folder_url, *(as_folder(folder_url) + path for path in below)]


def parents_of(url: str) -> list[str]:
    """The folders above a URL, nearest first, up to the root or the bucket."""
    scheme, _, path = url.partition("://")
    names = [name for name in path.strip("/").split("/") if name]
    root = f"{scheme}:///" if path.startswith("/") else f"{scheme}://"
    # A bucket is the first name, the root of a disk is before it.
    last = -1 if path.startswith("/") else 0
    return [root + "/".join(names[:depth]) for depth in range(len(names) - 1, last, -1)]


def partition_of(relative_path: str, partition_by: str | None) -> str:
    """Name the partition of a path: the first group of the expression, else its whole match.

    Returns:
        The empty string without an expression or a match.
    """
    match = re.search(partition_by, relative_path) if partition_by else None
    if match is None:
        return ""
    return (match.group(1) if match.re.groups else match.group(0)) or ""


def slug(url: str) -> str:
    """The last folder of a URL in characters that are safe in any path, at most 40 of them."""
    return (
        re.sub(r"[^A-Za-z0-9._-]+", "_", url.rstrip("/").rpartition("/")[2])[:40].strip("._")
        or "source"
    )
