"""Every public name says in its docstring what a caller must know: arguments, fields, results, errors, arrays, sources.

Public names are those in `__all__` of `PACKAGES`, and the public methods of the classes among them, `__init__`,
`__call__` and `__getitem__` with them. All is read from the source (`ast`), so that what a decorator, `dataclass` or
Flax adds is not taken for ours. The rules, a test each:

1. A docstring, whose first line ends like a sentence. A constant has a comment above it or a string below.
2. With two parameters or more: all of them are named, in `Args:` or in backticks, and `Args:` names nothing else. A
   function that returns something says what: in `Returns:` or `Yields:`, by its first word, or in its one paragraph.
3. All fields of a class (annotated, assigned in its body, or public attributes set in `__init__`) are named, in
   `Attributes:` or in backticks, and `Attributes:` names nothing else.
4. What the body raises is under `Raises:`; and what the private helpers that it calls, of its module or class, raise.
5. Arrays among parameters, results and fields have a shape (in the annotation, or in brackets in the text) and a dtype.
6. What implements the formula of a paper cites it, in its own docstring or in that of its module.

Where the rules bend, and why:

- A method that overrides or implements another of the package may leave to that one what both have in common: the two
  docstrings count together. An implementation of a protocol names it by "See `Protocol`".
- The constructor is part of its class, and so is what an object holds: the docstring of the class may say what
  `__init__` takes and `__getitem__` returns. What `__post_init__` raises may be told by either, and in a sentence
  ("Raises UserError where ..."), since the arguments are the fields, and what the fields may be is said there.
- `__call__` of a module is a formula more than a function: its arguments may be told by their annotations alone.
- A property is read as a field: its one line says what it is, and needs no `Returns:`.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import re
from pathlib import Path

import pytest

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
WITH_SOURCES = ("ops", "layers", "models")

# Names of ops, layers and models that implement no paper's formula, and what they are instead.
NO_PAPER = {
    "activation": "elementwise functions by name",
    "interpret_kernels": "a switch for tests",
    "BACKENDS": "a table",
    "Backend": "an entry of the table",
    "Problem": "sizes of a call",
    "resolve_backend": "a choice among the table's entries",
    "token_positions": "bookkeeping of packed rows",
    "KeyValueCache": "a container",
    "DiagonalState": "a container",
    "Tokens": "a container",
    "Cache": "a container",
    "make_norm": "norms by name",
    "unstack_layers": "another layout of the same parameters",
}

_SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Example", "Examples", "Note")
_CITATION = re.compile(r"arXiv \d{4}\.\d{4,5}|[A-Z]\w+ (?:& [A-Z]\w+|et al\.),? \(?(?:19|20)\d\d")
_JAXTYPING = re.compile(r"\b(?:Float|Int|UInt|Bool|Key|Num|Shaped|Complex)\w*\[[^\[\]]*?(?:\[[^\]]*\])?[^\[\]]*?\]")
# Methods that the docstring of the class may document.
_OF_THE_CLASS = ("__init__", "__getitem__")
# What is an array without jaxtyping; the aliases of the package that carry a dtype are among those that do.
_ARRAY = re.compile(r"\b(?:Array|ArrayLike|ndarray|NDArray|Int32s|Int64s)\b")
_ARRAY_WITH_DTYPE = re.compile(r"\b(?:NDArray\[np\.\w+\]|Int32s|Int64s)")
_SHAPE = re.compile(r"\[(?:[\w*+/., -]|\.\.\.)*\]|\bscalar\b")
_DTYPE = re.compile(r"\b(?:b?float(?:8|16|32|64)?|u?int(?:8|16|32|64)?|bool|complex|dtype|random key)\b")


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
        return _find(self.module, self.path)

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
        return Docstring(_docstring(self.node) if self.is_class or self.is_function else _text_of_constant(self))

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
                    found.append(Docstring(_docstring(node)))
            if method in _OF_THE_CLASS:
                found += [Docstring(_docstring(_class(each))) for each in (cls, *bases)]
        elif self.is_class:
            found += [Docstring(_docstring(_class(base))) for base in _seen(self)]
            found += [
                Docstring(_docstring(node))
                for node in self.node.body
                if getattr(node, "name", "") in ("__init__", "__post_init__")
            ]
        return found

    @functools.cached_property
    def parameters(self) -> dict[str, str]:
        """Name -> annotation, without self."""
        args = self.node.args
        every = [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg]
        named = {each.arg: _source(each.annotation) for each in every if each is not None}
        return {name: annotation for name, annotation in named.items() if name not in ("self", "cls")}

    @functools.cached_property
    def fields(self) -> dict[str, str]:
        """Name -> annotation of what an object of the class shows."""
        found = {}
        for node in self.node.body:
            if isinstance(node, ast.AnnAssign):
                found[node.target.id] = _source(node.annotation)
            elif isinstance(node, ast.Assign):
                found |= {name.id: "" for name in ast.walk(node) if _is_stored(name) and isinstance(name, ast.Name)}
            elif getattr(node, "name", "") == "__init__":
                found |= {name.attr: "" for name in ast.walk(node) if _is_stored(name) and _is_of_self(name)}
        return {name: annotation for name, annotation in found.items() if not name.startswith("_")}


def _source(annotation: ast.AST | None) -> str:
    """An annotation as it is written, without quotes around the whole of it."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return annotation.value
    return "" if annotation is None else ast.unparse(annotation)


def _is_stored(node: ast.AST) -> bool:
    return isinstance(getattr(node, "ctx", None), ast.Store)


def _is_of_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


@functools.cache
def _tree(module: str) -> ast.Module:
    return ast.parse(Path(importlib.import_module(module).__file__).read_text())


def _find(module: str, path: tuple[str, ...]) -> ast.AST:
    node: ast.AST = _tree(module)
    for name in path:
        node = next(each for each in node.body if name in _names(each))
    return node


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [target.id for target in targets if isinstance(target, ast.Name)]
    return [getattr(node, "name", "")]


def _class(cls: type) -> ast.ClassDef:
    return _find(cls.__module__, tuple(cls.__qualname__.split(".")))


def _docstring(node: ast.AST) -> str:
    return ast.get_docstring(node) or ""


def _seen(unit: Unit) -> list[type]:
    """The classes that the docstring refers to: "See `Tokenizer`"."""
    names = re.findall(r"\b[Ss]ee `(\w+)`", unit.doc.text)
    packages = [importlib.import_module(f"transnormer_jax.{package}") for package in PACKAGES]
    found = [getattr(package, name) for package in packages for name in names if name in package.__all__]
    return [each for each in found if inspect.isclass(each)]


def _text_of_constant(unit: Unit) -> str:
    """The string below the assignment, or the comment above it."""
    body = _tree(unit.module).body
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
    for node in _tree(module.__name__).body:
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return node.module
    return module.__name__


def _units() -> list[Unit]:
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


UNITS = _units()
CLASSES = [unit for unit in UNITS if unit.is_class]
FUNCTIONS = [unit for unit in UNITS if unit.is_function]


def each(units: list[Unit]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("unit", units, ids=str)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_there(package):
    module = importlib.import_module(f"transnormer_jax.{package}")
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert len(module.__all__) == len(set(module.__all__))


@each(UNITS)
def test_it_has_a_docstring(unit):
    doc = next((doc for doc in unit.docs if doc.text), None) if unit.path[-1] in _OF_THE_CLASS else unit.doc
    assert doc is not None, "no docstring"
    assert doc.text, "no docstring"
    first = doc.text.splitlines()[0] if unit.is_class or unit.is_function else doc.text
    assert first.endswith((".", ":")), "the first line is no sentence"


@each([unit for unit in FUNCTIONS if unit.path[-1] != "__call__"])
def test_parameters_are_named(unit):
    documented = {name for doc in unit.docs for name in (*doc.entries("Args"), *doc.entries("Attributes"))}
    for doc in unit.docs:
        documented |= doc.in_backticks
    if len(unit.parameters) >= 2:
        assert sorted(unit.parameters.keys() - documented) == []


@each(FUNCTIONS)
def test_arguments_that_are_named_are_parameters(unit):
    args = unit.doc.entries("Args")
    assert sorted(args.keys() - unit.parameters.keys()) == []
    assert [name for name, text in args.items() if not text] == []


@each([unit for unit in FUNCTIONS if unit.path[-1] not in (*_OF_THE_CLASS, "__call__") and not unit.is_property])
def test_the_result_is_told(unit):
    returns = _source(unit.node.returns)
    if returns in ("", "None", "NoReturn", "Iterator[None]"):
        return
    assert any(
        {"Returns", "Yields"} & doc.sections.keys()
        or doc.text.startswith(("Returns ", "Yields "))
        or (len(doc.paragraphs) == 1 and "Args" not in doc.sections)
        for doc in unit.docs
    )


@each(CLASSES)
def test_fields_are_named(unit):
    documented = {name for doc in unit.docs for name in doc.entries("Attributes")}
    documented |= {name for doc in unit.docs for name in doc.in_backticks}
    assert sorted(unit.fields.keys() - documented) == []
    own = unit.doc.entries("Attributes")
    properties = [node.name for node in unit.node.body if isinstance(node, ast.FunctionDef)]
    assert sorted(own.keys() - unit.fields.keys() - set(properties)) == []
    assert [name for name, text in own.items() if not text] == []


def _raised(module: str, owner: ast.ClassDef | None, function: ast.FunctionDef, seen: set[str]) -> set[str]:
    """Names of the exceptions that a function raises, or private helpers that it calls by name or on self."""
    found: set[str] = set()
    nested = [node for node in ast.walk(function) if isinstance(node, ast.FunctionDef | ast.Lambda)][1:]
    inside = {id(node) for function in nested for node in ast.walk(function)}
    for node in ast.walk(function):
        if id(node) in inside:
            continue
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            found.add(ast.unparse(node.exc.func).split(".")[-1])
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if _is_of_self(called) else called.id if isinstance(called, ast.Name) else ""
            scope = owner if _is_of_self(called) else _tree(module)
            if not name.startswith("_") or name in seen or scope is None:
                continue
            helper = next((each for each in scope.body if getattr(each, "name", "") == name), None)
            if isinstance(helper, ast.FunctionDef):
                found |= _raised(module, owner if _is_of_self(called) else None, helper, seen | {name})
    return found


@each(FUNCTIONS)
def test_errors_are_named(unit):
    owner = _find(unit.module, unit.path[:1]) if len(unit.path) == 2 else None
    named = {name for doc in unit.docs for name in doc.entries("Raises")}
    assert sorted(_raised(unit.module, owner, unit.node, set()) - named) == []


@each(CLASSES)
def test_errors_of_constructors_are_named(unit):
    post_init = next((node for node in unit.node.body if getattr(node, "name", "") == "__post_init__"), None)
    if post_init is None:
        return
    named = {name for doc in unit.docs for name in doc.entries("Raises")}
    named |= {name for doc in unit.docs for name in re.findall(r"Raises (\w+)", doc.text)}
    assert sorted(_raised(unit.module, unit.node, post_init, set()) - named) == []


def _what_is_missing(annotation: str, text: str) -> list[str]:
    """Whether shape and dtype of the arrays in an annotation are told, there or in the text."""
    missing = []
    annotation = re.sub(r"Callable\[.*\]", "", annotation)
    annotation = _JAXTYPING.sub("", annotation)
    if not _ARRAY.search(annotation):
        return missing
    if not _SHAPE.search(text) and "random key" not in text:  # a key has no shape of its own
        missing.append("shape")
    if not _DTYPE.search(text) and not _ARRAY_WITH_DTYPE.search(annotation):
        missing.append("dtype")
    return missing


def _told(docs: list[Docstring], section: str, name: str) -> str:
    """What is said of an argument or a field: its entry, or where it has none, all."""
    entries = [doc.entries(section)[name] for doc in docs if name in doc.entries(section)]
    return " ".join(entries) or " ".join(doc.text for doc in docs)


@each(FUNCTIONS)
def test_arrays_of_functions_have_shape_and_dtype(unit):
    missing = {
        name: _what_is_missing(annotation, _told(unit.docs, "Args", name))
        for name, annotation in unit.parameters.items()
    }
    told = [doc.sections.get("Returns", "") + doc.sections.get("Yields", "") or doc.sections[""] for doc in unit.docs]
    missing["return"] = _what_is_missing(_source(unit.node.returns), " ".join(told))
    assert {name: what for name, what in missing.items() if what} == {}


@each(CLASSES)
def test_arrays_of_classes_have_shape_and_dtype(unit):
    missing = {
        name: _what_is_missing(annotation, _told(unit.docs, "Attributes", name))
        for name, annotation in unit.fields.items()
    }
    assert {name: what for name, what in missing.items() if what} == {}


FROM_PAPERS = [unit for unit in UNITS if unit.package.split(".")[0] in WITH_SOURCES and len(unit.path) == 1]


def _cites(unit: Unit) -> bool:
    return bool(_CITATION.search(unit.doc.text) or _CITATION.search(_docstring(_tree(unit.module))))


@each([unit for unit in FROM_PAPERS if unit.path[0] not in NO_PAPER])
def test_the_source_is_cited(unit):
    assert _cites(unit)


@pytest.mark.parametrize("name", NO_PAPER)
def test_what_has_no_paper_is_there_and_cites_none(name):
    [unit] = [unit for unit in FROM_PAPERS if unit.path == (name,)]
    assert not _CITATION.search(unit.doc.text), "it cites a paper: it needs no exemption"
