"""Widths that have to agree, and what they are in a student."""

from fractions import Fraction

import pytest

from edgecompress.distill.students.widths import Widths, hold, scaled


@pytest.mark.parametrize(("size", "share", "new"), [(10, 0.5, 5), (5, 0.5, 3), (1, 0.1, 1), (64, 0.3, 19), (7, 1, 7)])
def test_a_share_is_rounded_and_at_least_1(size, share, new) -> None:
    assert scaled(size, share) == new


def test_what_is_joined_stays_the_same_and_what_is_held_stays() -> None:
    widths = Widths()
    one, two, three, four = (widths.make(8) for _ in range(4))
    widths.join(one, two)
    widths.join(two, three)
    hold([four])
    assert widths.solve(0.5)
    assert [one.new, two.new, three.new, four.new] == [4, 4, 4, 8]
    widths.join(three, None)
    assert not widths.solve(0.5)
    assert one.new == 8


def test_sums_and_products_follow_their_parts() -> None:
    widths = Widths()
    one, two = widths.make(5), widths.make(7)
    total = widths.total([(5, one), (3, None), (7, two)])
    flat = widths.times(Fraction(4), total)
    assert widths.solve(0.5)
    assert (total.new, flat.new) == (3 + 3 + 4, 40)
    hold([flat])
    assert not widths.solve(0.5)


def test_a_width_that_cannot_agree_with_all_is_held() -> None:
    widths = Widths()
    parts = [widths.make(size) for size in (5, 5, 3, 7)]
    one, two = widths.total([(5, parts[0]), (5, parts[1])]), widths.total([(3, parts[2]), (7, parts[3])])
    other = widths.make(9)
    widths.follow(one, Fraction(2), half := widths.make(5))
    assert widths.solve(0.5)
    assert (one.new, two.new, half.new) == (6, 6, 3)
    widths.follow(two, Fraction(10, 9), other)
    widths.solve(0.3)
    assert (two.new, other.new, parts[2].new) == (10, 9, 3)


def test_a_width_that_is_made_of_itself_is_held() -> None:
    widths = Widths()
    one = widths.make(4)
    half = widths.times(Fraction(1, 2), one)
    widths.join(one, widths.total([(2, half), (2, half)]))
    assert not widths.solve(0.5)
    assert (one.new, half.new) == (4, 2)


def test_a_whole_is_a_multiple_of_the_number_of_its_parts() -> None:
    widths = Widths()
    whole = widths.make(32)
    part = widths.part(4, whole)
    assert widths.solve(0.3)
    assert (whole.new, part.new) == (8, 2)
