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
import importlib
import re

import pytest

from tests.public_names import (
    OF_THE_CLASS,
    PACKAGES,
    Docstring,
    Unit,
    docstring,
    find,
    is_of_self,
    public_units,
    source,
    tree,
)

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
    "Places": "a container",
    "Cache": "a container",
    "ARCHITECTURES": "a registry",
    "MIXERS": "a registry",
    "make_norm": "norms by name",
    "unstack_layers": "another layout of the same parameters",
}

_CITATION = re.compile(r"arXiv \d{4}\.\d{4,5}|[A-Z]\w+ (?:& [A-Z]\w+|et al\.),? \(?(?:19|20)\d\d")
_JAXTYPING = re.compile(r"\b(?:Float|Int|UInt|Bool|Key|Num|Shaped|Complex)\w*\[[^\[\]]*?(?:\[[^\]]*\])?[^\[\]]*?\]")
# What is an array without jaxtyping; the aliases of the package that carry a dtype are among those that do.
_ARRAY = re.compile(r"\b(?:Array|ArrayLike|ndarray|NDArray|Int32s|Int64s)\b")
_ARRAY_WITH_DTYPE = re.compile(r"\b(?:NDArray\[np\.\w+\]|Int32s|Int64s)")
_SHAPE = re.compile(r"\[(?:[\w*+/., -]|\.\.\.)*\]|\bscalar\b")
_DTYPE = re.compile(r"\b(?:b?float(?:8|16|32|64)?|u?int(?:8|16|32|64)?|bool|complex|dtype|random key)\b")

UNITS = public_units()
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
    doc = next((doc for doc in unit.docs if doc.text), None) if unit.path[-1] in OF_THE_CLASS else unit.doc
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


@each([unit for unit in FUNCTIONS if unit.path[-1] not in (*OF_THE_CLASS, "__call__") and not unit.is_property])
def test_the_result_is_told(unit):
    returns = source(unit.node.returns)
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
            name = called.attr if is_of_self(called) else called.id if isinstance(called, ast.Name) else ""
            scope = owner if is_of_self(called) else tree(module)
            if not name.startswith("_") or name in seen or scope is None:
                continue
            helper = next((each for each in scope.body if getattr(each, "name", "") == name), None)
            if isinstance(helper, ast.FunctionDef):
                found |= _raised(module, owner if is_of_self(called) else None, helper, seen | {name})
    return found


@each(FUNCTIONS)
def test_errors_are_named(unit):
    owner = find(unit.module, unit.path[:1]) if len(unit.path) == 2 else None
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
    missing["return"] = _what_is_missing(source(unit.node.returns), " ".join(told))
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
    return bool(_CITATION.search(unit.doc.text) or _CITATION.search(docstring(tree(unit.module))))


@each([unit for unit in FROM_PAPERS if unit.path[0] not in NO_PAPER])
def test_the_source_is_cited(unit):
    assert _cites(unit)


@pytest.mark.parametrize("name", NO_PAPER)
def test_what_has_no_paper_is_there_and_cites_none(name):
    [unit] = [unit for unit in FROM_PAPERS if unit.path == (name,)]
    assert not _CITATION.search(unit.doc.text), "it cites a paper: it needs no exemption"
