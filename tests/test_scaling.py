"""What is said of the recipes is what the record of their compiled programs says."""

import ast
import json
import re

import pytest

from benchmarks.scaling import COMMANDS, RECORD, table
from tests.commands import ROOT

PROGRAMS = json.loads(RECORD.read_text())["programs"]


def test_the_page_says_what_the_record_says():
    assert table(PROGRAMS) in (ROOT / "docs" / "scaling.md").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_recipe_fits_and_recomputes_little(command):
    report = PROGRAMS[command]
    assert report["fits"]
    assert report["recompute_factor"] <= 1.4


@pytest.mark.parametrize("command", [command for command in COMMANDS if len(command.split()) == 2])
def test_a_recipe_says_what_it_was_compiled_to(command):
    config, topology = re.fullmatch(r"--config=(\S+) --topology=(\S+)", command).groups()
    said = ast.get_docstring(ast.parse((ROOT / config).read_text()))
    report = PROGRAMS[command]
    peak = report["bytes_per_chip"]["peak"] / 2**30
    assert f"{topology}: {peak:.1f} GiB, {report['flops_per_chip'] / 1e12:,.0f} TFLOP" in " ".join(said.split())
