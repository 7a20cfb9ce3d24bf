"""What an export says of the teacher: its repo id, its name, its licence; never a path."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from fewstep.export.base import Student
from fewstep.utils import yaml
from fewstep.utils.privacy import public
from fewstep.utils.resources import resolve

HERE = "."
"""Address of an export that nobody has published yet: the folder that its card lies in."""

REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""`owner/name` on the Hugging Face Hub."""
_CACHED = re.compile(r"models--(.+?)--(.+)")
_LINK = re.compile(r"[a-z]+://")


def repo_id_of(student: Student) -> str | None:
    """The teacher's id on the Hugging Face Hub; None where it is a folder that nothing is known of.

    It is what the recipe's `card` says, the teacher's own address, or that of the hub's cache.
    """
    said = student.recipe.card.get("base_model", "") if student.recipe else ""
    if REPO_ID.fullmatch(said):
        return said
    path = resolve(student.teacher)
    if not path.exists():
        return student.teacher if REPO_ID.fullmatch(student.teacher) else None
    cached = next((part for part in path.absolute().parts if _CACHED.fullmatch(part)), None)
    return cached.removeprefix("models--").replace("--", "/", 1) if cached else None


def teacher_name(student: Student) -> str:
    """What people call the teacher: a repo id, or the name of its folder."""
    return repo_id_of(student) or public(str(student.teacher).rstrip("/\\"))


def base_model(student: Student) -> str | None:
    """The repo id that a card names as the base: the teacher's, or that of its own base."""
    base = front_matter(student).get("base_model")
    base = base[0] if isinstance(base, list) and base else base
    known = isinstance(base, str) and REPO_ID.fullmatch(base)
    return repo_id_of(student) or (str(base) if known else None)


def licence(student: Student) -> dict[str, str]:
    """`license`, `license_name` and `license_link` of the teacher's card; empty: it names none.

    A link to a file in the teacher's own repo is written out, as an adapter has no such file.
    """
    card, repo = front_matter(student), repo_id_of(student)
    found = {
        key: str(card[key]) for key in ("license", "license_name", "license_link") if card.get(key)
    }
    if "license" not in found:
        return {}
    link = found.get("license_link", "")
    if link and not _LINK.match(link) and not (student.backbone.source / link).is_file():
        found["license_link"] = f"https://huggingface.co/{repo}/blob/main/{link}" if repo else ""
    return {key: value for key, value in found.items() if value}


def copy_licence(student: Student, folder: Path) -> None:
    """Copies the teacher's licence files beside what was made of it."""
    link = licence(student).get("license_link", "")
    source = student.backbone.source
    files = {path.name for path in source.glob("LICEN[CS]E*") if path.is_file()}
    if link and not _LINK.match(link) and Path(link).name == link:
        files.add(link)
    for name in sorted(files):
        shutil.copyfile(source / name, folder / name)


def front_matter(student: Student) -> dict[str, Any]:
    """The metadata of the teacher's own card."""
    return yaml.front_matter(student.backbone.source / "README.md")
