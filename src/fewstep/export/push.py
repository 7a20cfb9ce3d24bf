"""An exported folder on the Hugging Face Hub: what goes there, what must not, and sending it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.export.note import NOTE, read_note
from fewstep.export.teacher import REPO_ID
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import read_text
from fewstep.utils.resources import expand

_CARD = "README.md"
_SECRET_NAMES = re.compile(r"secret|credential|passw|id_rsa|\.(pem|key|p12|env)$", re.IGNORECASE)
_PRIVATE = re.compile(
    r"hf_[A-Za-z0-9]{16,}|://[^/\s@]+:[^/\s@]+@"  # access tokens; user and password in an address
    r"|(?<![\w./])(?:/home/|/Users/|/root/)[^\s\"'`)\]]+|\b[A-Za-z]:\\{1,2}Users\\[^\s\"'`)\]]+"
)
_LOADED_HERE = re.compile(r"((?:from_pretrained|load_lora_weights|load_lora_adapter)\()([\"'])\.\2")
_HERE_NOTE = re.compile(
    r"^It loads from the folder that this card lies in\.[^\n]*\n\n?", re.MULTILINE
)


@dataclass(frozen=True)
class Push:
    """What is sent where.

    Attributes:
        folder: The exported folder.
        repo: `owner/name` on the hub.
        public: Whether everybody may see it.
        files: Paths in the folder -> bytes.
    """

    folder: Path
    repo: str
    public: bool
    files: dict[str, int]

    @staticmethod
    def prepare(place: str | Path, repo: str, *, public: bool = False) -> Push:
        """Looks at what would be sent; nothing is.

        Args:
            place: An exported folder, or a run that was exported.
            repo: `owner/name` on the hub.
            public: Whether everybody may see it.

        Raises:
            FewstepError: There is no export, it is not as it was written, or something in it is
                nobody else's business.
        """
        if not REPO_ID.fullmatch(repo):
            raise FewstepError(f"{repo}: not a repo id; give owner/name", code="usage")
        folder = expand(place)
        folder = folder / "export" if (folder / "config.yaml").is_file() else folder
        note = read_note(folder)
        if note is None:
            raise FewstepError(
                f"{place}: no export there; run `fewstep export {place}` first",
                code="missing-input",
            )
        note.check(folder)
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        names = {path.relative_to(folder).as_posix(): path for path in found}
        shown = {name: path for name, path in names.items() if not _is_hidden(name)}
        for name, path in shown.items():
            _refuse_private(name, path)
        sizes = {name: path.stat().st_size for name, path in shown.items()}
        return Push(folder, repo, public, sizes)

    @property
    def card(self) -> str:
        """The model card as it is sent: what loaded from its folder loads from the repo."""
        text = read_text(self.folder / _CARD)
        return _HERE_NOTE.sub("", _LOADED_HERE.sub(rf"\1\g<2>{self.repo}\2", text))

    def send(self) -> str:
        """Sends everything in one commit; files that are there already are not sent again.

        Returns:
            The repo's address.

        Raises:
            FewstepError: The hub cannot be reached or refuses, or the repo is public and that was
                not asked for.
        """
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi()
        with _told(self.repo):
            url = api.create_repo(self.repo, private=not self.public, exist_ok=True)
            if not self.public and api.model_info(self.repo).private is False:
                raise FewstepError(
                    f"{self.repo}: is public; say --public, or give another name", code="exists"
                )
            operations = [
                CommitOperationAdd(
                    name, self.card.encode() if name == _CARD else str(self.folder / name)
                )
                for name in self.files
            ]
            api.create_commit(self.repo, operations, commit_message="Upload a student of fewstep")
        return str(url)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _refuse_private(name: str, path: Path) -> None:
    """Refuses a file that says what only this machine or this user should know."""
    if _SECRET_NAMES.search(name):
        raise FewstepError(f"{path}: looks like a secret; take it out", code="invalid")
    if name.count("/") and not name.endswith("config.json"):
        return  # weights and vocabularies
    if path.suffix in (".md", ".json", ".txt", ".yaml") and (
        found := _PRIVATE.search(read_text(path))
    ):
        line = read_text(path)[: found.start()].count("\n") + 1
        again = "export again" if name in (NOTE, "config.json") else "take it out"
        raise FewstepError(
            f"{path}:{line}: a path of this machine or a secret; {again}", code="invalid"
        )


@contextmanager
def _told(repo: str) -> Iterator[None]:
    """Context in which what the hub's library raises becomes one line."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    # Errors of the HTTP library that the hub uses, of the system, and of a file under way.
    unreachable: Any = (*HfHubHTTPError.__bases__, RuntimeError)
    login = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise FewstepError(f"{repo}: no access token; {login}", code="no-access") from error
    except OfflineModeIsEnabled as error:
        raise FewstepError(
            f"{repo}: HF_HUB_OFFLINE is set; unset it to push", code="no-access"
        ) from error
    except HfHubHTTPError as error:
        response: Any = error.response
        status = getattr(response, "status_code", None)
        said = str(error.server_message or error).strip().splitlines()[0]
        todo = f"; {login}" if status in (401, 403) else "; what was sent is kept, try again"
        raise FewstepError(
            f"{repo}: the hub refused ({status}): {said}{todo}", code="no-access"
        ) from error
    except unreachable as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FewstepError(
            f"{repo}: the hub cannot be reached: {why}; what was sent is kept, try again",
            code="no-access",
        ) from error
