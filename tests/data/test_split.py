"""The validation split and the mixing of datasets."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from afina.data.examples import Example, Turn
from afina.data.mix import mix
from afina.data.split import counts, split

seeds = st.integers(0, 2**32 - 1)
shares = st.floats(0.01, 0.5)
numbers = st.lists(st.integers(0, 300), max_size=300)


def example(number: int) -> Example:
    return Example((Turn("user", f"q{number}"), Turn("assistant", f"a{number}")), row=number)


def some(count: int) -> list[Example]:
    return [example(number) for number in range(count)]


@settings(max_examples=80, deadline=None)
@given(rows=numbers, more=numbers, share=shares, seed=seeds)
def test_appending_moves_no_row_and_equal_rows_stay_together(
    rows: list[int], more: list[int], share: float, seed: int
) -> None:
    train, held = split([example(n) for n in rows], share, seed)
    later_train, later_held = split([example(n) for n in rows + more], share, seed)
    assert (later_train[: len(train)], later_held[: len(held)]) == (train, held)
    assert len(train) + len(held) == len(rows)
    assert not {row.key() for row in train} & {row.key() for row in held}
    assert bool(train) == bool(rows)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(10, 400), share=shares, seed=seeds)
def test_the_share_is_kept(count: int, share: float, seed: int) -> None:
    _, held = split(some(count), share, seed)
    assert len(held) >= 1
    assert abs(len(held) - share * count) < 6


def test_usual_sizes() -> None:
    assert {len(split(some(91), 0.1, seed)[1]) for seed in range(30)} <= set(range(7, 12))
    assert abs(sum(len(split(some(91), 0.1, seed)[1]) for seed in range(100)) / 100 - 9.1) < 0.6
    assert split(some(5), 0.0, 1) == (some(5), [])
    assert split(some(1), 0.5, 1) == (some(1), [])
    assert split([example(1)] * 20, 0.5, 1) == ([example(1)] * 20, [])


def test_seeds_differ_and_repeat() -> None:
    chosen = [tuple(row.row for row in split(some(200), 0.1, seed)[1]) for seed in (1, 2, 1)]
    assert chosen[0] == chosen[2] != chosen[1]


def test_whole_weights_repeat_and_fractions_draw() -> None:
    part, other = some(10), [example(n) for n in range(100, 200)]
    rows = mix([(part, 2), (other, 0.2)], seed=3)
    counts = Counter(row.row for row in rows)
    assert all(counts[n] == 2 for n in range(10))
    assert len(rows) == 40
    assert rows == mix([(part, 2), (other, 0.2)], seed=3)
    assert rows != mix([(part, 2), (other, 0.2)], seed=4)
    assert mix([(part, 1)], seed=9) == part
    assert len(mix([(part, 1.5)], seed=9)) == 15
    assert len(mix([(part, 0.01)], seed=9)) == 1
    assert mix([([], 0.5)], seed=9) == []


def test_five_epochs_of_a_fifth_show_every_row_once() -> None:
    seen = Counter(row.row for epoch in range(5) for row in mix([(some(50), 0.2)], seed=1, epoch=epoch))
    assert seen == Counter(range(50))


@settings(max_examples=80, deadline=None)
@given(rows=numbers, more=numbers, count=st.integers(1, 50), seed=seeds)
def test_by_count_nothing_learned_is_ever_used_to_test(rows: list[int], more: list[int], count: int, seed: int) -> None:
    train, held = split([example(n) for n in rows], 0.1, seed, count)
    different = len(set(rows))
    assert len({row.key() for row in held}) == max(0, min(count, different - 1))
    assert not {row.key() for row in train} & {row.key() for row in held}
    assert len(train) + len(held) == len(rows)
    later_train, _ = split([example(n) for n in rows + more], 0.1, seed, count)
    learned = {row.key() for row in train}
    assert different < 2 or learned - {row.key() for row in later_train} == set() or different <= count


def test_a_count_is_divided_among_datasets_by_their_size() -> None:
    assert counts(10, [90, 10]) == [9, 1]
    assert counts(10, [50, 50, 50]) in ([4, 3, 3], [3, 4, 3], [3, 3, 4])
    assert counts(None, [5, 5]) == [None, None]
    assert counts(3, [0, 0]) == [None, None]
    assert sum(count or 0 for count in counts(7, [3, 1000, 20])) == 7
