"""What the rig of faults makes of what it sees."""

from tests.chaos.memory import MEBIBYTE, Memory, Watch


def test_the_memory_of_replicas_is_the_highest_of_each_half_of_a_storm() -> None:
    watch = Watch([[100 * MEBIBYTE, 90 * MEBIBYTE], [120 * MEBIBYTE, 0], [110 * MEBIBYTE, 95 * MEBIBYTE]])

    memory = watch.result()

    assert memory == Memory(first=[100, 90], second=[120, 95])
    assert str(memory) == "100 MiB, then 120 MiB"


def test_a_storm_that_was_too_short_to_look_at_has_no_memory() -> None:
    memory = Watch().result()

    assert str(memory) == "0 MiB, then 0 MiB"
