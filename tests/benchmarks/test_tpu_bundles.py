"""What a schedule takes: counted bundle by bundle, and what depends on data is not guessed."""

import pytest

from tests.benchmarks.schedules import SCHEDULE, replayed


def test_a_schedule_is_replayed_bundle_by_bundle():
    """Six turns; bundles 7 and 8 in the first only; a delay slot behind each branch."""
    known_size = SCHEDULE.replace("/*size_in_granules=*/%s6_s2", "7")
    result = replayed(known_size)
    assert result.bundles == 12
    assert result.grid == (2, 3)
    assert result.cycles == 1 + 6 * 8 + 2 + 1
    assert result.issued == result.cycles - 12
    assert result.loop_cycles == 8
    assert result.utilization["MATMUL"] == 6 / (4 * result.cycles)
    assert result.spills == 1
    assert (result.read_bytes, result.written_bytes) == (5 * 32, 7 * 32)
    assert result.unknown_branches == 0


def test_turns_that_depend_on_data_can_be_given():
    """Three turns in each of the two rows of the grid are the six that the schedule itself contains."""
    known_size = SCHEDULE.replace("/*size_in_granules=*/%s6_s2", "7")
    result = replayed(known_size.replace("%s3_s0, 6", "%s3_s0, %s1_s1"), turns=3)
    assert result.cycles == replayed(known_size).cycles
    assert result.issued == replayed(known_size).issued


def test_what_depends_on_data_is_not_guessed():
    with pytest.raises(ValueError, match="size of a copy"):
        replayed()
    known_size = SCHEDULE.replace("/*size_in_granules=*/%s6_s2", "7")
    with pytest.raises(ValueError, match="how often an inner loop turns"):
        replayed(known_size.replace("%s3_s0, 6", "%s3_s0, %s1_s1"))
    # A branch forward on data: what it skips is taken to run.
    result = replayed(known_size.replace("%s2_s0, 0 }", "%s2_s0, %s1_s1 }"))
    assert result.unknown_branches == 6
    assert result.loop_cycles == 10
