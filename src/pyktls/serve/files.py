"""Opening what lies below a directory, and nothing else.

Each directory on the way is opened from the one before, by a single name and without following a
symbolic link, so there is no path that leads out, whatever is renamed meanwhile.  What is opened in
the end is a regular file or a directory: anything else is looked at and not opened, since to open a
device or a FIFO can block, or do something; should it have taken the file's place in between,
O_NONBLOCK keeps that from blocking, and it is closed again.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Directory", "File", "Root", "status_of"]

# To pass through a directory one need not be allowed to read it.
PASS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

# The names lead nowhere, or to what is not served.  ELOOP is a link that was not followed
# (EMLINK on FreeBSD), ENXIO a FIFO or a device without a driver, EOPNOTSUPP a socket on FreeBSD.
_NOT_FOUND = frozenset({
    errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EMLINK, errno.ENAMETOOLONG, errno.EINVAL,
    errno.EILSEQ, errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP, errno.ESTALE, errno.EISDIR,
})  # fmt: skip
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})
_FOR_NOW = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR})


class File:
    """An open regular file.  Whoever gets it closes it."""

    __slots__ = ("_object", "fd", "stat")

    def __init__(self, fd: int, found: os.stat_result) -> None:
        self.fd = fd
        self.stat = found
        self._object: io.FileIO | None = None

    def as_object(self) -> io.FileIO:
        """What sendfile takes.  A thread that reads from it when it is closed gets an error."""
        if self._object is None:
            self._object = io.FileIO(self.fd)
        return self._object

    def read(self, offset: int, count: int) -> bytes:
        """Bytes of it; fewer than ``count`` only if the file has become shorter."""
        data = os.pread(self.fd, count, offset)
        while 0 < len(data) < count:
            more = os.pread(self.fd, count - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def close(self) -> None:
        """Close it."""
        if self._object is not None:
            self._object.close()
        else:
            os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Directory:
    """An open directory, which can be listed unless ``fd`` is None."""

    fd: int | None = None

    def close(self) -> None:
        """Close it."""
        if self.fd is not None:
            os.close(self.fd)


class Root:
    """The directory that is served."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # The user's own choice: links on the way to it are followed.
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close it; nothing more can be opened."""
        os.close(self._fd)

    def open(self, names: Sequence[bytes]) -> File | Directory:
        """What lies at ``names``, each a name without a slash; raises OSError.

        A directory is only found to be one, and not opened.
        """
        if not names:
            return Directory()
        with self._enter(names[:-1]) as place:
            return _open_in(place.fd, names[-1])

    def open_directory(
        self, names: Sequence[bytes], index: bytes, *, listed: bool
    ) -> File | Directory:
        """The file called ``index`` in a directory, or else that directory; raises OSError.

        The directory is open for listing if ``listed``.
        """
        with self._enter(names) as place:
            try:
                found = _open_in(place.fd, index)
            except OSError as e:
                if status_of(e) != 404:
                    raise
            else:
                if isinstance(found, File):
                    return found
            return Directory(
                os.open(".", READ | os.O_DIRECTORY, dir_fd=place.fd) if listed else None
            )

    def _enter(self, names: Sequence[bytes]) -> _Place:
        place = _Place(self._fd, own=False)
        for name in names:
            with place:
                place = _Place(os.open(name, PASS, dir_fd=place.fd), own=True)
        return place


class _Place:
    """A directory on the way, closed when its block is left unless it is the root."""

    __slots__ = ("_own", "fd")

    def __init__(self, fd: int, *, own: bool) -> None:
        self.fd = fd
        self._own = own

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._own:
            os.close(self.fd)


def _open_in(place: int, name: bytes) -> File | Directory:
    mode = os.stat(name, dir_fd=place, follow_symlinks=False).st_mode
    if stat.S_ISDIR(mode):
        return Directory()
    if not stat.S_ISREG(mode):
        raise _not_served(name)
    fd = os.open(name, READ, dir_fd=place)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise _not_served(name)
    except OSError:
        os.close(fd)
        raise
    return File(fd, found)


def _not_served(name: bytes) -> OSError:
    return FileNotFoundError(errno.ENOENT, "not a regular file", os.fsdecode(name))


def status_of(error: OSError) -> int:
    """The status of HTTP for what opening a file ended in."""
    if error.errno in _NOT_FOUND:
        return 404
    if error.errno in _FORBIDDEN:
        return 403
    return 503 if error.errno in _FOR_NOW else 500
