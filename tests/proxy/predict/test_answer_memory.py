"""What the answer cache holds is bounded in bytes, exactly, whatever comes and goes."""

from __future__ import annotations

from foreseen.proxy.predict.answer_memory import TEMPLATES_SHARE, AnswerMemory


def test_templates_of_a_beginning_are_kept_newest_first() -> None:
    """Beginnings are apart; each knows its size."""
    memory = AnswerMemory(10_000)
    memory.add_template("a", "one", 100)
    memory.add_template("b", "two", 50)
    memory.add_template("a", "three", 30)
    assert memory.templates["a"].listed == ["three", "one"]
    assert memory.templates["b"].listed == ["two"]
    assert (memory.templates["a"].size, memory.templates["b"].size) == (130, 50)
    assert memory.bytes == memory._template_bytes == 180


def test_templates_grow_and_shrink_and_are_forgotten() -> None:
    """The bytes follow; what is not kept takes none."""
    memory = AnswerMemory(10_000)
    memory.add_template("a", "one", 100)
    memory.add_template("b", "two", 50)
    memory.grow_template("a", 20)
    memory.grow_template("a", -5)
    memory.grow_template("unknown", 1000)
    assert (memory.templates["a"].size, memory.bytes, memory._template_bytes) == (115, 165, 165)
    memory.forget_templates("a")
    memory.forget_templates("a")
    assert list(memory.templates) == ["b"]
    assert memory.bytes == memory._template_bytes == 50


def test_templates_take_their_part_of_the_memory_and_the_oldest_go() -> None:
    """Exactly the part is allowed; one byte more, and the oldest beginning goes, as many as it takes."""
    memory = AnswerMemory(16 * TEMPLATES_SHARE)
    for name in "abcd":
        memory.add_template(name, name, 4)
    assert list(memory.templates) == ["a", "b", "c", "d"]
    memory.grow_template("d", 1)
    assert list(memory.templates) == ["b", "c", "d"]
    memory.add_template("e", "e", 9)
    assert list(memory.templates) == ["d", "e"]
    assert memory.bytes == memory._template_bytes == 14


def test_a_closed_memory_is_empty_and_stays_so() -> None:
    """Nothing is kept any more."""
    memory = AnswerMemory(1_000)
    memory.add_template("a", "one", 10)
    memory.close()
    assert (memory.bytes, memory.capacity_bytes, len(memory.templates)) == (0, 0, 0)
    memory.add_template("a", "one", 1)
    assert (memory.bytes, len(memory.templates)) == (0, 0)


def test_a_hash_came_before_from_its_second_time_on() -> None:
    """The first time it is only remembered."""
    memory = AnswerMemory(1_000)
    assert [memory.came_before(7), memory.came_before(8), memory.came_before(7), memory.came_before(7)] == [
        False,
        False,
        True,
        True,
    ]
