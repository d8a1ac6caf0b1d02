"""The newest checkpoint that can be read is taken, and only what is a checkpoint's own fault counts against it."""

import jax
import pytest

from transnormer_jax.errors import UserError
from transnormer_jax.training import reading
from transnormer_jax.training.reading import newest_readable


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(reading, "_RETRY_SECONDS", (0.0, 0.0))


def test_the_newest_that_can_be_read_is_taken(tmp_path):
    def read(step: int) -> str:
        if step > 2:
            raise ValueError(f"torn {step}\nand more")
        return f"content {step}"

    found = newest_readable(tmp_path, [1, 4, 2, 3], read)
    assert found == (2, "content 2", {4: "ValueError: torn 4", 3: "ValueError: torn 3"})
    assert newest_readable(tmp_path, [], read) is None
    with pytest.raises(
        UserError, match=r"none of the 2 checkpoints .* can be read \(checkpoint 4: ValueError: torn 4\)"
    ):
        newest_readable(tmp_path, [3, 4], read)


@pytest.mark.parametrize("failures", [1, 2])
def test_a_read_that_fails_once_or_twice_is_tried_again(tmp_path, failures):
    attempts = []

    def read(step: int) -> str:
        attempts.append(step)
        if len(attempts) <= failures:
            raise OSError("the store does not answer")
        return "content"

    assert newest_readable(tmp_path, [1, 2], read) == (2, "content", {})
    assert attempts == [2] * (failures + 1)


def test_content_that_is_not_as_saved_counts_as_unreadable(tmp_path):
    def check(content: int) -> None:
        if content == 2:
            raise ValueError("other bytes")

    assert newest_readable(tmp_path, [1, 2], lambda step: step, check) == (1, 1, {2: "ValueError: other bytes"})


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"), MemoryError(), UserError("other")])
def test_a_checkpoint_is_not_broken_where_the_machine_is_too_small(tmp_path, error):
    def read(step: int) -> None:
        raise error

    with pytest.raises(type(error)):
        newest_readable(tmp_path, [1, 2], read)
