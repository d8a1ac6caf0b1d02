"""What pyproject.toml declares is what the package imports."""

import ast
import re
import sys
import tomllib

from tests.commands import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Distributions that are imported under another name.
IMPORTED_AS = {
    "absl-py": "absl",
    "orbax-checkpoint": "orbax",
    "pillow": "PIL",
    "prometheus-client": "prometheus_client",
}
# Needed by a dependency that does not declare them: pyproject.toml says whose.
FOR_OTHERS = {"flatbuffers", "importlib_resources", "regex", "xxhash", "gcsfs", "s3fs"}
# Installed with a dependency that is part of its interface: of starlette by fastapi, for example.
COME_WITH = {
    "multiprocess": "datatrove",
    "starlette": "fastapi",
    "ml_dtypes": "jax",
    "pydantic": "fastapi",
    "huggingface_hub": "tokenizers",
}


def declared(requirements: list[str]) -> set[str]:
    names = {re.split(r"[\[<>=!;~ ]", requirement)[0] for requirement in requirements}
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names - {"transnormer_jax"}}


def imported() -> set[str]:
    names = set[str]()
    for path in [ROOT / "train.py", ROOT / "eval.py", *(ROOT / "transnormer_jax").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(str(node.module).split(".")[0])
    return names - set(sys.stdlib_module_names) - {"transnormer_jax", "configs"}


def test_every_import_is_declared():
    everything = declared(PROJECT["dependencies"]).union(*map(declared, PROJECT["optional-dependencies"].values()))
    assert {name for name in imported() if COME_WITH.get(name, name) not in everything} == set()


def test_every_dependency_is_imported():
    assert declared(PROJECT["dependencies"]) - imported() - FOR_OTHERS == set()
