"""A filesystem whose disk fails for chosen files: real input/output errors, on demand."""

import errno
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.local import LocalFileSystem


class FlakyFileSystem(LocalFileSystem):  # type: ignore[misc]
    """The local disk under the protocol `flaky`, with bad sectors."""

    protocol = "flaky"
    bad_names: ClassVar[dict[str, int]] = {}
    """How often reading a file fails before it works, by base name."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(str(path).removeprefix("flaky://")))

    def unstrip_protocol(self, name: str) -> str:
        return f"flaky://{self._strip_protocol(name)}"

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        name = path.rpartition("/")[2]
        if self.bad_names.get(name, 0) > 0:
            self.bad_names[name] -= 1
            raise OSError(errno.EIO, "Input/output error", path)
        content: bytes = super().cat_file(path, *args, **kwargs)
        return content


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
