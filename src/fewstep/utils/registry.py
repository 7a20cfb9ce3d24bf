"""Open ends: kinds of things that a recipe names and that any installed package can add.

A member is found in two ways: as a file of the kind's own package (built in), or by an entry point
of the kind's group that an installed distribution declares::

    [project.entry-points."fewstep.metrics"]
    sharpness = "my_package.sharpness:Sharpness"

Only code that is installed is ever imported; a recipe merely names it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

from fewstep.utils.errors import FewstepError, unknown

T = TypeVar("T")
_PROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"


@dataclass(eq=False)
class Registry(Generic[T]):
    """The members of one kind, by name; nothing is imported before it is asked for.

    Attributes:
        kind: What a member is called in messages, such as ``metric``.
        group: Group of the entry points, such as ``fewstep.metrics``.
        package: Package whose files hold the built-in members, or a module that holds them
            itself; None: there are none.
        members: ``members(module) -> name -> member``, what such a file defines. If not given: its
            function (or class) ``load``, under the file's name.
    """

    kind: str
    group: str
    package: str | None = None
    members: Callable[[Any], Mapping[str, T]] = lambda module: {
        module.__name__.rpartition(".")[2]: module.load
    }
    _found: dict[str, T] = field(default_factory=dict, init=False, repr=False)
    _complete: bool = field(default=False, init=False, repr=False)

    def available(self) -> list[str]:
        """Names of all members, sorted."""
        return sorted({*self._built_in(), *self._plugins()})

    def get(self, name: str) -> T:
        """The member of a name.

        Raises:
            FewstepError: There is none, and the nearest name; or its package cannot be imported.
        """
        if name in self._built_in():
            return self._found[name]
        plugins = self._plugins()
        if name not in plugins:
            raise unknown(self.kind, name, self.available())
        try:
            loaded: T = plugins[name].load()
        except (ImportError, AttributeError) as error:
            raise FewstepError(
                f"{self.kind} {name!r}: {plugins[name].value} cannot be imported: {error}",
                code="missing-dependency",
            ) from error
        return loaded

    def all(self) -> dict[str, T]:
        """Every member by name."""
        return {name: self.get(name) for name in self.available()}

    def _built_in(self) -> dict[str, T]:
        if not self._complete and self.package is not None:
            home = importlib.import_module(self.package)
            files = pkgutil.iter_modules(getattr(home, "__path__", []), f"{self.package}.")
            modules = [importlib.import_module(info.name) for info in files]
            for module in modules if hasattr(home, "__path__") else [home]:
                self._found |= self.members(module)
        self._complete = True
        return self._found

    def _plugins(self) -> dict[str, metadata.EntryPoint]:
        return {each.name: each for each in _entry_points(self.group)}


def load_named(registry: Registry[Callable[..., T]], text: str) -> T:
    """What a recipe's ``NAME`` or ``NAME:SOURCE`` stands for, such as ``clip:FOLDER``.

    Args:
        registry: Functions of no argument, or of one: the source.
        text: What the recipe says.

    Raises:
        FewstepError: There is no such name; a source too many, or one missing.
    """
    name, colon, source = text.partition(":")
    make = registry.get(name)
    takes_source = len(inspect.signature(make).parameters) > 0
    if takes_source != bool(colon):
        usage = f"write it as {name}:SOURCE" if takes_source else f"{name} takes no source"
        raise FewstepError(f"{registry.kind} {text!r}: {usage}")
    return make(source) if takes_source else make()


def _entry_points(group: str) -> Iterator[metadata.EntryPoint]:
    """Those of installed distributions; of this one as its source tree says, if it is run from it.

    A source tree need not be installed, and what was installed from it may be older than it is.
    """
    own = _declared()
    for each in metadata.entry_points(group=group):
        if own is None or each.dist is None or each.dist.name != "fewstep":
            yield each
    for name, value in (own or {}).get(group, {}).items():
        yield metadata.EntryPoint(name, value, group)


def _declared() -> dict[str, dict[str, str]] | None:
    """Entry points in the pyproject.toml of the source tree; None where this is no source tree."""
    try:
        project = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return None
    points: dict[str, dict[str, str]] = project.get("entry-points", {})
    return points if project.get("name") == "fewstep" else None
