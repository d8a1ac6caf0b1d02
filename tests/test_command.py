"""What all commands share."""

import runpy
import signal
import types

import pytest

from tests.commands import run, start
from transnormer_jax import command, config_flag
from transnormer_jax.errors import UserError
from transnormer_jax.training import Config
from transnormer_jax.training.workdir import write_config


def test_a_missing_module_of_an_extra_is_told():
    words = r"^matplotlib is missing: in a clone, pip install -e '\.\[report\]'\.$"
    with pytest.raises(UserError, match=words), command.extra("report", "matplotlib"):
        raise ModuleNotFoundError("No module named 'matplotlib.figure'", name="matplotlib.figure")


@pytest.mark.parametrize("error", [ImportError("cannot import name 'render'"), ModuleNotFoundError("x", name="numpi")])
def test_other_failures_of_an_import_are_no_mistake_of_the_user(error):
    with pytest.raises(type(error)) as raised, command.extra("report", "matplotlib"):
        raise error
    assert raised.value is error


def test_a_configuration_comes_before_its_overrides(monkeypatch):
    monkeypatch.setattr(config_flag, "flags", types.SimpleNamespace(FLAGS={"config": object()}))
    arguments = config_flag.prepared(["--config.num_steps=3", "--config", "quickstart", "--workdir=w"])
    assert arguments[0].startswith("--config=/")
    assert arguments[0].endswith("/configs/quickstart.py")
    assert arguments[1:] == ["--config.num_steps=3", "--workdir=w"]
    with pytest.raises(UserError, match=r"unknown config key --config\.num_stebs: did you mean '--config\.num_steps'"):
        config_flag.prepared(["--config.num_stebs=3", "--config=quickstart"])


def test_overrides_are_of_the_run_in_the_workdir(monkeypatch, tmp_path):
    flag = types.SimpleNamespace(of_run=True, takes_file=False)
    monkeypatch.setattr(config_flag, "flags", types.SimpleNamespace(FLAGS={"config": flag}))
    config = Config(seed=3)
    write_config(tmp_path, config)
    found, *rest = config_flag.prepared(["--config.seed=4", "--workdir", str(tmp_path)])
    path, _, workdir = found.removeprefix("--config=").partition(":")
    assert rest == ["--config.seed=4", "--workdir", str(tmp_path)]
    assert Config.from_dict(runpy.run_path(path)["get_config"](workdir).to_dict()) == config
    assert config_flag.prepared(["--workdir=w"]) == ["--workdir=w"]  # nothing is read where nothing is overridden


_SCRIPT = """
import logging
import signal
import time

from absl import logging as absl_logging
from transnormer_jax import command


def main():
    absl_logging.info("a step of Orbax")
    absl_logging.warning("a warning of TFDS")
    logging.getLogger("jax").info("a step of JAX")
    print("running", flush=True)
    time.sleep({seconds})


signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
command.run(main)
"""


def script(directory, seconds: float):
    path = directory / "script.py"
    path.write_text(_SCRIPT.format(seconds=seconds))
    return path


def test_ctrl_c_is_one_line(tmp_path):
    process = start(script(tmp_path, 60))
    assert next(process.lines()) == "running\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("verbosity", "shown"),
    [([], ""), (["--verbosity=-1"], "a warning of TFDS"), (["--verbosity=0"], "a step of Orbax")],
)
def test_verbosity_is_that_of_all_libraries(tmp_path, verbosity, shown):
    status, out, err = run(script(tmp_path, 0), *verbosity)
    assert (status, out) == (0, "running\n")
    assert shown in err
    assert ("a step of JAX" in err) == ("a step of Orbax" in err) == (verbosity == ["--verbosity=0"])
    assert ("a warning of TFDS" in err) == bool(verbosity)
