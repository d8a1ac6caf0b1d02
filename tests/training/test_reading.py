"""The newest checkpoint that can be read is taken, and only what is a checkpoint's own fault counts against it."""

import jax
import pytest

from transnormer_jax.errors import UserError
from transnormer_jax.training.reading import newest_readable


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


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"), MemoryError(), UserError("other")])
def test_a_checkpoint_is_not_broken_where_the_machine_is_too_small(tmp_path, error):
    def read(step: int) -> None:
        raise error

    with pytest.raises(type(error)):
        newest_readable(tmp_path, [1, 2], read)
