"""Deadlines and what is expected of time."""

import threading

import pytest

from hybridrec.checks import InputError
from hybridrec.deadline import Deadline, Pace


def test_a_deadline_counts_down():
    now = [10.0]
    deadline = Deadline(1500, lambda: now[0])
    assert deadline.left() == pytest.approx(1.5)
    now[0] = 12.0
    assert deadline.left() == pytest.approx(-0.5)


def test_a_pace_is_a_quantile_of_the_newest():
    pace = Pace(window=10, quantile=0.8)
    assert pace.expected() == 0.0
    for seconds in (99.0, *range(1, 11)):
        pace.observe(float(seconds))
    assert pace.expected() == 9.0
    pace.clear()
    assert pace.expected() == 0.0


def test_nothing_is_expected_before_enough_was_seen():
    pace = Pace(least=3)
    for seconds in (9.0, 1.0):
        pace.observe(seconds)
    assert pace.expected() == 0.0
    pace.observe(2.0)
    assert pace.expected() == 2.0


def test_what_is_old_is_forgotten():
    now = [0.0]
    pace = Pace(memory=10.0, clock=lambda: now[0])
    pace.observe(5.0)
    now[0] = 8.0
    pace.observe(1.0)
    assert pace.expected() == 5.0
    now[0] = 11.0
    assert pace.expected() == 1.0
    now[0] = 19.0
    assert pace.expected() == 0.0


def test_threads_may_share_a_pace():
    pace = Pace(window=100)

    def observe():
        for _ in range(1000):
            pace.observe(1.0)
            assert pace.expected() == 1.0

    threads = [threading.Thread(target=observe) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pace.expected() == 1.0


@pytest.mark.parametrize("wrong", [{"window": 0}, {"quantile": 1.0}, {"least": 0}, {"memory": 0}])
def test_a_pace_refuses_nonsense(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Pace(**wrong)


def test_each_size_has_a_pace_of_its_own_or_the_next_smaller_ones():
    pace = Pace()
    assert pace.expected(8) == 0.0
    pace.observe(0.01)
    assert pace.expected(1) == pace.expected(32) == 0.01
    for _ in range(50):
        pace.observe(0.2, 32)
    assert pace.expected(33) == 0.2
    assert pace.expected(31) == 0.01
    assert pace.expected(1) == 0.01
    pace.clear()
    assert pace.expected(32) == 0.0
