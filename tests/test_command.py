"""What all commands share."""

import pytest

from transnormer_jax import command
from transnormer_jax.errors import UserError


def test_a_missing_module_of_an_extra_is_told():
    words = r"^matplotlib is missing: in a clone, pip install -e '\.\[report\]'\.$"
    with pytest.raises(UserError, match=words), command.extra("report", "matplotlib"):
        raise ModuleNotFoundError("No module named 'matplotlib.figure'", name="matplotlib.figure")


@pytest.mark.parametrize("error", [ImportError("cannot import name 'render'"), ModuleNotFoundError("x", name="numpi")])
def test_other_failures_of_an_import_are_no_mistake_of_the_user(error):
    with pytest.raises(type(error)) as raised, command.extra("report", "matplotlib"):
        raise error
    assert raised.value is error
