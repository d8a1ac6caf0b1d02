"""The public names of the package, and their docstrings, as the source has them."""

import ast
import dataclasses
import functools
import importlib
import inspect
import re
from pathlib import Path

PACKAGES = [
    "ops",
    "ops.linear_attention",
    "layers",
    "models",
    "tasks",
    "data",
    "distributed",
    "training",
    "inference",
    "convert",
]

_SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Example", "Examples", "Note")
# Methods that the docstring of the class may document.
OF_THE_CLASS = ("__init__", "__getitem__")


@dataclasses.dataclass(frozen=True)
class Docstring:
    """The parts of a docstring in Google's style."""

    text: str

    @functools.cached_property
    def sections(self) -> dict[str, str]:
        """Name -> text, and "" -> all that is in no section."""
        found: dict[str, list[str]] = {"": []}
        name = ""
        for line in self.text.splitlines():
            heading = line[:-1] if line.endswith(":") else ""
            if heading in _SECTIONS:
                name = heading
            elif name and line and not line.startswith(" "):
                name = ""
            found.setdefault(name, []).append("" if heading in _SECTIONS else line)
        return {name: "\n".join(lines).strip("\n") for name, lines in found.items()}

    def entries(self, section: str) -> dict[str, str]:
        """Name -> text of the entries of a section."""
        lines = self.sections.get(section, "").splitlines()
        indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
        found: dict[str, str] = {}
        name = ""
        for line in lines:
            match = re.match(rf" {{{indent}}}\*{{0,2}}(\w+):(.*)", line)
            if match:
                name, line = match[1], match[2]
            if name:
                found[name] = f"{found.get(name, '')} {line.strip()}".strip()
        return found

    @functools.cached_property
    def in_backticks(self) -> set[str]:
        """Identifiers between backticks, outside of sections."""
        return {match.lstrip("*") for match in re.findall(r"`(\*{0,2}\w+)`", self.sections[""])}

    @functools.cached_property
    def paragraphs(self) -> list[str]:
        """Of what is in no section, without examples."""
        paragraphs = re.split(r"\n\s*\n", self.sections[""].strip())
        return [paragraph for paragraph in paragraphs if paragraph and not paragraph.startswith(">>>")]


@dataclasses.dataclass(frozen=True)
class Unit:
    """A public function, class, method or constant.

    Attributes:
      package: of `PACKAGES`.
      module: where it is defined.
      path: names of the class and method, or of the function or constant.
    """

    package: str
    module: str
    path: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.package}.{'.'.join(self.path)}"

    @functools.cached_property
    def node(self) -> ast.AST:
        return find(self.module, self.path)

    @property
    def is_class(self) -> bool:
        return isinstance(self.node, ast.ClassDef)

    @property
    def is_function(self) -> bool:
        return isinstance(self.node, ast.FunctionDef)

    @property
    def is_property(self) -> bool:
        return self.is_function and any("property" in ast.unparse(each) for each in self.node.decorator_list)

    @functools.cached_property
    def doc(self) -> Docstring:
        """Its own docstring."""
        return Docstring(docstring(self.node) if self.is_class or self.is_function else _text_of_constant(self))

    @functools.cached_property
    def docs(self) -> list[Docstring]:
        """Its own docstring and those that count with it: see the docstring of this file."""
        found = [self.doc]
        if len(self.path) == 2:
            owner, method = self.path
            cls = getattr(importlib.import_module(self.module), owner)
            bases = [base for base in cls.__mro__[1:] if base.__module__.startswith("transnormer_jax.")]
            bases += _seen(self)
            for base in bases:
                node = next((node for node in _class(base).body if getattr(node, "name", "") == method), None)
                if node is not None:
                    found.append(Docstring(docstring(node)))
            if method in OF_THE_CLASS:
                found += [Docstring(docstring(_class(each))) for each in (cls, *bases)]
        elif self.is_class:
            found += [Docstring(docstring(_class(base))) for base in _seen(self)]
            found += [
                Docstring(docstring(node))
                for node in self.node.body
                if getattr(node, "name", "") in ("__init__", "__post_init__")
            ]
        return found

    @functools.cached_property
    def parameters(self) -> dict[str, str]:
        """Name -> annotation, without self."""
        args = self.node.args
        every = [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg]
        named = {each.arg: source(each.annotation) for each in every if each is not None}
        return {name: annotation for name, annotation in named.items() if name not in ("self", "cls")}

    @functools.cached_property
    def fields(self) -> dict[str, str]:
        """Name -> annotation of what an object of the class shows."""
        found = {}
        for node in self.node.body:
            if isinstance(node, ast.AnnAssign) and "ClassVar" not in source(node.annotation):
                found[node.target.id] = source(node.annotation)
            elif isinstance(node, ast.Assign):
                found |= {name.id: "" for name in ast.walk(node) if _is_stored(name) and isinstance(name, ast.Name)}
            elif getattr(node, "name", "") == "__init__":
                found |= {name.attr: "" for name in ast.walk(node) if _is_stored(name) and is_of_self(name)}
        return {name: annotation for name, annotation in found.items() if not name.startswith("_")}


def source(annotation: ast.AST | None) -> str:
    """An annotation as it is written, without quotes around the whole of it."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return annotation.value
    return "" if annotation is None else ast.unparse(annotation)


def _is_stored(node: ast.AST) -> bool:
    return isinstance(getattr(node, "ctx", None), ast.Store)


def is_of_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(Path(importlib.import_module(module).__file__).read_text())


def find(module: str, path: tuple[str, ...]) -> ast.AST:
    node: ast.AST = tree(module)
    for name in path:
        node = next(each for each in node.body if name in _names(each))
    return node


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [target.id for target in targets if isinstance(target, ast.Name)]
    return [getattr(node, "name", "")]


def _class(cls: type) -> ast.ClassDef:
    return find(cls.__module__, tuple(cls.__qualname__.split(".")))


def docstring(node: ast.AST) -> str:
    return ast.get_docstring(node) or ""


def _seen(unit: Unit) -> list[type]:
    """The classes that the docstring refers to: "See `Tokenizer`"."""
    names = re.findall(r"\b[Ss]ee `(\w+)`", unit.doc.text)
    packages = [importlib.import_module(f"transnormer_jax.{package}") for package in PACKAGES]
    found = [getattr(package, name) for package in packages for name in names if name in package.__all__]
    return [each for each in found if inspect.isclass(each)]


def _text_of_constant(unit: Unit) -> str:
    """The string below the assignment, or the comment above it."""
    body = tree(unit.module).body
    place = body.index(unit.node)
    below = body[place + 1] if place + 1 < len(body) else None
    if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
        return inspect.cleandoc(below.value.value)
    lines = Path(importlib.import_module(unit.module).__file__).read_text().splitlines()[: unit.node.lineno - 1]
    comment: list[str] = []
    while lines and lines[-1].startswith("# "):
        comment.insert(0, lines.pop()[2:])
    return "\n".join(comment)


def _module_of(package: str, name: str) -> str:
    """The module in which a public name is defined; constants are looked for where their package imports them from."""
    module = importlib.import_module(f"transnormer_jax.{package}")
    value = getattr(module, name)
    if hasattr(value, "__qualname__") and value.__module__.startswith("transnormer_jax."):
        return value.__module__
    for node in tree(module.__name__).body:
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return node.module
    return module.__name__


def public_units() -> list[Unit]:
    found: dict[tuple[str, tuple[str, ...]], Unit] = {}
    for package in PACKAGES:
        module = importlib.import_module(f"transnormer_jax.{package}")
        for name in module.__all__:
            if not hasattr(module, name):
                continue  # `test_every_name_is_there` says so
            unit = Unit(package, _module_of(package, name), (name,))
            found.setdefault((unit.module, unit.path), unit)
            if unit.is_class:
                for node in unit.node.body:
                    if isinstance(node, ast.FunctionDef) and _is_public_method(node.name):
                        method = Unit(package, unit.module, (name, node.name))
                        found.setdefault((method.module, method.path), method)
    return list(found.values())


def _is_public_method(name: str) -> bool:
    return name in ("__init__", "__call__", "__getitem__") or not (name.startswith("_") or name == "setup")
