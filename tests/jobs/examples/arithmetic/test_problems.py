"""The split is by pair, so nothing about a held-out pair is ever trained on; choices are fair."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.examples.arithmetic.problems import LIMIT, PHRASINGS, Problem, problems

numbers = st.integers(0, LIMIT - 1)


@given(a=numbers, b=numbers)
def test_a_pair_is_held_out_in_every_order_and_operation(a: int, b: int) -> None:
    forms = [Problem(operation, *pair) for operation in PHRASINGS for pair in ((a, b), (b, a))]
    assert len({problem.is_held_out for problem in forms}) == 1


def test_about_fifteen_percent_are_held_out() -> None:
    everything = list(problems())
    assert sum(problem.is_held_out for problem in everything) / len(everything) == pytest.approx(0.15, abs=0.01)


def test_problems_are_distinct_and_never_negative() -> None:
    everything = list(problems())
    assert len({problem.name for problem in everything}) == len(everything) == 100 * 100 + 100 * 101 // 2
    assert min(problem.answer for problem in everything) == 0


def test_questions_say_what_is_computed() -> None:
    assert Problem("add", 37, 48).question(0) == "What is 37 plus 48?"
    assert Problem("add", 37, 48).answer == 85
    assert Problem("subtract", 37, 8).question(2) == "Subtract 8 from 37."
    assert Problem("subtract", 37, 8).answer == 29


@given(a=numbers, b=numbers, operation=st.sampled_from(sorted(PHRASINGS)), seed=st.integers(0, 2**32))
def test_four_distinct_choices_of_one_length_hold_the_answer(a: int, b: int, operation: str, seed: int) -> None:
    problem = Problem(operation, max(a, b), min(a, b))
    choices = problem.choices(random.Random(seed))
    assert len(set(choices)) == 4
    assert problem.answer in choices
    assert {len(str(choice)) for choice in choices} == {len(str(problem.answer))}
