"""Fingerprints of files and folders, and files written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fewstep.utils.disk import writing
from fewstep.utils.errors import Code, FewstepError

_WHOLE = 64 * 2**20  # bytes up to which a file is hashed in full; beyond, its ends and its length
_ENDS = 2**20
_KINDS = {".safetensors", ".json", ".txt", ".model", ".py"}
_SPECIAL = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
TEXT_BYTES = 64 * 2**20
"""Bound on a text file that is read whole, such as a recipe or a configuration; bytes."""


def regular_file(path: Path) -> Path:
    """The same path, if an ordinary file is there, perhaps through links.

    A pipe or a device has no end, and reading it may never return.

    Raises:
        FewstepError: Nothing is there, or something else, or it may not be looked at.
    """
    try:
        mode = stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError) as error:  # ValueError: a character that no name may have
        raise FewstepError(f"{path}: {_reason(error)}", code=_code(error)) from error
    if mode != stat.S_IFREG:
        what = _SPECIAL.get(mode, "something else")
        raise FewstepError(f"{path}: not a file but {what}; give a file", code="invalid")
    return path


def read_text(path: Path, *, at_most: int = TEXT_BYTES) -> str:
    """Content of an ordinary UTF-8 file, with or without a byte order mark.

    Args:
        path: The file.
        at_most: Bytes that it may have.

    Raises:
        FewstepError: As `regular_file`; or it is larger, cannot be read, or is no UTF-8 text.
    """
    try:
        with regular_file(path).open("rb") as stream:
            content = stream.read(at_most + 1)
    except OSError as error:
        raise FewstepError(f"{path}: {_reason(error)}", code=_code(error)) from error
    if len(content) > at_most:
        raise FewstepError(
            f"{path}: larger than {at_most / 2**20:g} MB, which is too much for such a file",
            code="out-of-range",
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FewstepError(
            f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8", code="invalid"
        ) from error


def _reason(error: OSError | ValueError) -> str:
    """What the system says, such as ``no such file or directory``."""
    text = getattr(error, "strerror", None) or str(error)
    return text[:1].lower() + text[1:]


def _code(error: OSError | ValueError) -> Code:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "missing-file"
    return "no-access" if isinstance(error, OSError) else "invalid"


def sha256_of(path: Path) -> str:
    """SHA-256 of a whole file, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def damaged_files(folder: Path, sums: Mapping[str, str]) -> list[str]:
    """Names of the files that are missing from a folder or do not have the SHA-256 they should.

    Args:
        folder: Where they are.
        sums: File name -> SHA-256 that it should have.
    """

    def is_sound(name: str) -> bool:
        try:
            return sha256_of(regular_file(folder / name)) == sums[name]
        except (OSError, FewstepError):
            return False

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        sound = list(pool.map(is_sound, sums))
    return [name for name, flag in zip(sums, sound, strict=True) if not flag]


def digest_text(*parts: str) -> str:
    """Short fingerprint of some texts, in order."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def digest_files(paths: Iterable[Path], root: Path | None = None) -> str:
    """Fingerprint of files: their names (below `root`, if given) and contents.

    Of a file too large to read in a moment, the first and last megabyte and the length stand in.
    """
    total = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        name = path.relative_to(root).as_posix() if root else path.name
        total.update(f"{name}\0{size}\0".encode())
        with path.open("rb") as stream:
            if size <= _WHOLE:
                total.update(stream.read())
            else:
                total.update(stream.read(_ENDS))
                stream.seek(-_ENDS, os.SEEK_END)
                total.update(stream.read())
    return total.hexdigest()[:16]


def digest_model(source: str | Path) -> str | None:
    """Fingerprint of a model's weights and configurations; None where they are not on this disk.

    Args:
        source: A folder, or a repo id, which is looked up in the local hub cache only.
    """
    folder = Path(source)
    if not folder.is_dir():
        cached = _cached_folder(str(source))
        if cached is None:
            return None
        folder = cached
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix in _KINDS]
    return digest_files(files, folder) if files else None


def _cached_folder(repo: str) -> Path | None:
    """Snapshot of a repo id in the local hub cache; never asks the network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        paths = [try_to_load_from_cache(repo, name) for name in ("model_index.json", "config.json")]
    except HFValidationError:
        return None
    return next((Path(path).parent for path in paths if isinstance(path, str)), None)


# --------------------------------------------------------------------------------------- writing


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Context with a folder that is made if need be, and removed again if it is empty at the end.

    Raises:
        WriteFailed: It cannot be made.
    """
    missing: list[Path] = []
    try:
        with writing(folder):
            missing = [each for each in (folder, *folder.parents) if not each.exists()]
            folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for each in missing:
            with suppress(OSError):
                each.rmdir()


def check_writable(folder: Path) -> None:
    """Checks that files can be written to a folder, which need not exist; leaves nothing behind.

    Raises:
        WriteFailed: They cannot.
    """
    with made(folder), writing(folder):
        handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=folder)
        os.close(handle)
        os.unlink(name)


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Context that writes a file or folder whole or not at all.

    Readers see the old content or the new, never half of it. After an error nothing is left behind
    and the old content stays; what a killed process leaves has a hidden name that ends in ``.tmp``.
    Files have the rights that the umask leaves, whichever library wrote them.

    Args:
        path: What to write or replace; its folder is made if there is none.
        sync: Wait until the content is on the disk before it takes its name, and then for the name.

    Yields:
        A path beside it with nothing there yet, to write a file or to make a folder at.

    Raises:
        WriteFailed: The disk refuses.
    """
    temporary = path.with_name(f".{path.name[:99]}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        try:
            yield temporary
            settle(temporary, sync=sync)
            if path.is_dir() and not path.is_symlink():
                _exchange(temporary, path)
            else:
                temporary.replace(path)
            if sync:
                fsync(path.parent)
        finally:
            remove(temporary)


def _exchange(temporary: Path, path: Path) -> None:
    """Puts a folder in the place of another, which comes back if that fails."""
    if not temporary.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    old = temporary.with_suffix(".old.tmp")
    path.rename(old)
    try:
        temporary.rename(path)
    except BaseException:  # a signal, too
        old.rename(path)
        raise
    remove(old)


def remove(path: Path) -> None:
    """Removes a file, a link or a folder with all that is in it; nothing may be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def settle(path: Path, *, sync: bool = True) -> None:
    """Gives a file, or all of a folder, the rights that the umask leaves, and syncs it to the disk.

    Libraries that write by way of a temporary file leave it readable by its owner only.
    """
    umask = os.umask(0o077)
    os.umask(umask)
    for each in (*path.rglob("*"), path):
        if not each.is_symlink():
            with suppress(OSError):  # file systems without rights
                each.chmod((0o777 if each.is_dir() else 0o666) & ~umask)
            if sync:
                fsync(each)


def fsync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some file systems cannot sync a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Writes a file whole or not at all, see `replacing`."""
    with replacing(path, sync=sync) as temporary:
        temporary.write_bytes(content)


def append_line(path: Path, line: str) -> None:
    """Adds a line to a text file and waits until it is on the disk; a kill may cut it off.

    Raises:
        WriteFailed: The disk refuses.
    """
    with writing(path):
        new = not path.exists()
        with path.open("ab") as stream:
            # A line that was cut off must not be continued.
            stream.write(f"{'' if new else chr(10)}{line}".encode())
            stream.flush()
            os.fsync(stream.fileno())
        if new:
            fsync(path.parent)


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Writes a text file as UTF-8, whole or not at all, see `replacing`."""
    write_bytes(path, text.encode(), sync=sync)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, indented, whole or not at all.

    Raises:
        ValueError: The content has a number that JSON has no word for, such as NaN.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None where there is no such file or it is damaged."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError):  # of `read_text`, too
        return None
    return content if isinstance(content, dict) else None
