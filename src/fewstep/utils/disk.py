"""What the system says of files and disks, in words, and the error of what cannot be written."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from fewstep.utils.errors import Code, FewstepError

_ELSEWHERE = "choose another place"
_ADVICE = {
    errno.ENOSPC: "the disk is full; make room, or choose another disk",
    errno.EDQUOT: "your share of the disk is used up; make room, or choose another disk",
    errno.EFBIG: "larger than a file may be here; see `ulimit -f`, or choose another disk",
    errno.EROFS: f"the file system is read-only; {_ELSEWHERE}",
    errno.EACCES: f"you have no right to this; change its rights, or {_ELSEWHERE}",
    errno.EPERM: f"this is not allowed; change its rights, or {_ELSEWHERE}",
    errno.EIO: "the disk reports an error; check the disk, or choose another one",
    errno.ESTALE: "the network's file system lost it; mount it anew",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: f"links that lead to each other; {_ELSEWHERE}",
    errno.EMFILE: "too many files are open; raise `ulimit -n`",
    errno.ENFILE: "the system has too many files open; end other programs",
    errno.EEXIST: f"a file, or a link that leads nowhere, is in the way; {_ELSEWHERE}",
    errno.ENOTDIR: f"a part of the path is a file, not a folder; {_ELSEWHERE}",
    errno.EISDIR: "this is a folder, where a file is wanted; check the path",
    errno.ENOENT: "there is no such file or folder; check the path",
    errno.ENOMEM: "the machine's memory is used up; end other programs",
}
"""What to do about what the system says of files, by its number."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of which copying names the source
_NUMBER = re.compile(r"(?:os error |\[Errno )(\d+)")  # safetensors and shutil have it as text only


class WriteFailed(FewstepError):
    """Something could not be written; what was there before is as it was."""

    default_code: ClassVar[Code] = "no-access"


def system_error(error: BaseException) -> int | None:
    """Number of the system's error (`errno`) that an exception tells of; None: it tells of none."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    own = type(error).__module__ == "builtins" and not isinstance(error, OSError)
    found = None if own else _NUMBER.search(str(error))
    if found and int(found[1]) in _ADVICE:
        return int(found[1])
    return system_error(error.__cause__) if error.__cause__ is not None else None


def advice(number: int) -> str:
    """What a system's error means, and what to do about it."""
    return _ADVICE.get(number, f"{os.strerror(number)}; check the path and the disk")


@contextmanager
def writing(path: Path, *, needed: int | None = None) -> Iterator[None]:
    """Context in which whatever a library raises when the disk refuses becomes `WriteFailed`.

    Args:
        path: What is written, for the message.
        needed: Bytes that will be written, if known.

    Raises:
        WriteFailed: The disk is full, the path is no good, rights are missing, ...
    """
    try:
        yield
    except Exception as error:
        number = system_error(error)
        foreign = number not in _FULL and _names_another(error, path)
        if number is None or isinstance(error, FewstepError) or foreign:
            raise
        room = ""
        if number in _FULL and needed is not None:
            room = f" ({needed / 1e6:,.1f} MB are needed)"
        raise WriteFailed(f"{path}: {advice(number)}{room}") from error


def _names_another(error: Exception, path: Path) -> bool:
    """Whether an error is about a file that lies elsewhere, such as one that was read."""
    name = getattr(error, "filename", None)
    return isinstance(name, str | os.PathLike) and not Path(name).absolute().is_relative_to(
        path.absolute().parent
    )
