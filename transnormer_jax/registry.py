"""Registries: the names that a configuration may use. A file outside the package can add to them."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path

from transnormer_jax.errors import UserError, did_you_mean

# Registers what only the papers' comparisons need; imported when a name is not among the core's.
_MORE_MEMBERS = "transnormer_jax.papers"


class Registry[T](MutableMapping[str, T]):
    """A dictionary whose unknown names are a `UserError`, and which can be filled by a decorator.

    >>> shapes = Registry[type]("shape")
    >>> @shapes.register("square")
    ... class Square: ...
    >>> shapes["square"] is Square
    True
    """

    def __init__(self, kind: str):
        """`kind` is what error messages call a member."""
        self._kind = kind
        self._members: dict[str, T] = {}

    def register[M](self, name: str) -> Callable[[M], M]:
        """A decorator that adds a class or function under a name."""

        def add(member: M) -> M:
            self[name] = member  # type: ignore[assignment]
            return member

        return add

    def __setitem__(self, name: str, member: T) -> None:
        """Raises UserError if another module has registered the name."""
        other = self._members.get(name, member)
        if other.__module__ != member.__module__:
            raise UserError(
                f"{self._kind} {name!r} is registered by {other.__module__} and by {member.__module__}: rename one."
            )
        self._members[name] = member

    def __getitem__(self, name: str) -> T:
        """Raises UserError for an unknown name."""
        if name not in self:
            raise UserError(f"unknown {self._kind} {name!r}: {did_you_mean(name, self)}")
        return self._members[name]

    def __contains__(self, name: object) -> bool:
        return name in self._members or name in self._all()

    def __delitem__(self, name: str) -> None:
        del self._members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, T]:
        importlib.import_module(_MORE_MEMBERS)
        return self._members


def load_plugin(name: str) -> None:
    """Imports a module, or the file NAME.py, so that it registers its members.

    Raises:
      UserError: there is no such module or file.
    """
    if not name.endswith(".py"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(f"config.plugins: cannot import {name!r} ({error}): give a module or a file.") from error
        return
    path = Path(name).expanduser().resolve()
    if any(getattr(module, "__file__", None) == str(path) for module in list(sys.modules.values())):
        return
    if not path.is_file():
        raise UserError(f"config.plugins: there is no file {name!r}: correct its path.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
