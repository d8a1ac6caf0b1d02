import pytest

from tests.inference.letters import CONFIG, Letters, make_params
from transnormer_jax.inference import Generator


@pytest.fixture(scope="session")
def params():
    return make_params()


@pytest.fixture(scope="session")
def generator(params):
    return Generator(CONFIG, params, Letters())
