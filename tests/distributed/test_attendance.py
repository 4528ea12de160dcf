"""Who is lost and who is stuck, by what one process has seen of the others and by its own clock."""

from __future__ import annotations

import pytest

from sfd_cli.distributed.attendance import Attendance, Beat

LIMIT, PATIENCE = 60.0, 10.0


def attended(history: list[tuple[float, dict[int, Beat]]]) -> Attendance:
    attendance = Attendance(PATIENCE)
    for now, beats in history:
        attendance.note(beats, now)
    return attendance


@pytest.mark.parametrize("beat", [Beat(0, 0), Beat(17, 4, None), Beat(3, 2, 0.5), Beat(-1, 0)])
def test_a_beat_is_read_as_it_was_told(beat: Beat) -> None:
    assert Beat.read(str(beat).encode()) == beat


def test_a_process_that_does_not_count_is_lost_after_the_patience_and_not_before() -> None:
    history = [(now, {0: Beat(int(now), 0), 1: Beat(min(int(now), 5), 0), 2: Beat(int(now), 0)}) for now in range(15)]
    assert attended(history).lost(14.0) == []
    assert attended([*history, (16, {0: Beat(16, 0), 1: Beat(5, 0), 2: Beat(16, 0)})]).lost(16.0) == [1]


def test_a_process_that_has_left_with_its_work_done_is_not_missed() -> None:
    attendance = attended([(0, {0: Beat(1, 0), 1: Beat(1, 0, LIMIT)}), (1, {1: Beat(-1, 0)}), (99, {0: Beat(9, 0)})])
    assert attendance.lost(99) == []
    assert attendance.stuck(99) == ([], 0.0)


def test_who_has_not_looked_for_a_while_blames_nobody_for_it() -> None:
    attendance = attended([(0, {0: Beat(1, 5, LIMIT), 1: Beat(1, 5, LIMIT)})])
    assert attendance.lost(1000) == [0, 1]
    attendance.excuse(1000)
    assert attendance.lost(1000 + PATIENCE) == []
    assert attendance.stuck(1000 + LIMIT) == ([], 0.0)
    assert attendance.stuck(1001 + LIMIT) == ([0, 1], LIMIT)


def test_of_those_that_stand_still_the_ones_behind_are_stuck_for_the_others_wait_for_them() -> None:
    stand = [(now, {0: Beat(now, 8, LIMIT), 1: Beat(now, 7, LIMIT), 2: Beat(now, 8, LIMIT)}) for now in range(0, 70, 2)]
    assert attended(stand).stuck(LIMIT) == ([], 0.0)
    assert attended(stand).stuck(LIMIT + 1) == ([1], LIMIT)
    assert attended(stand).lost(68) == []


def test_one_that_may_take_its_time_is_waited_for_by_others_that_may_not() -> None:
    saving = [(now, {0: Beat(now, 7, None), 1: Beat(now, 8, LIMIT)}) for now in range(0, 4000, 2)]
    attendance = attended(saving)
    assert attendance.stuck(4000) == ([], 0.0)
    attendance.note({0: Beat(4001, 7, LIMIT)}, 4001)  # it is back, and has its time from now on
    assert attendance.stuck(4001 + LIMIT) == ([], 0.0)
    assert attendance.stuck(4002 + LIMIT) == ([0], LIMIT)


def test_steps_that_go_on_are_in_time_however_many_they_are() -> None:
    history = [(now, {rank: Beat(now, now // 50, LIMIT) for rank in range(2)}) for now in range(0, 2000, 2)]
    attendance = Attendance(PATIENCE)
    for now, beats in history:
        attendance.note(beats, now)
        assert attendance.stuck(now) == ([], 0.0)


def test_who_has_waited_long_for_another_has_its_own_time_when_that_one_comes() -> None:
    """As in a step with the first one, which has drawn samples meanwhile; it comes, and is ahead a moment later."""
    attendance = attended([(now, {0: Beat(now, 7, None), 1: Beat(now, 8, LIMIT)}) for now in range(0, 1000, 2)])
    attendance.note({0: Beat(1000, 8, LIMIT), 1: Beat(1000, 8, LIMIT)}, 1000)
    assert attendance.stuck(1000) == ([], 0.0)
    attendance.note({0: Beat(1002, 9, LIMIT), 1: Beat(1002, 8, LIMIT)}, 1002)
    assert attendance.stuck(1002) == ([], 0.0)
    assert attendance.stuck(1001 + LIMIT) == ([1], LIMIT)
    attendance.note({1: Beat(1004, 10, LIMIT)}, 1004)  # past the other at once, between two looks
    assert attendance.stuck(1004 + LIMIT) == ([], 0.0)
    assert attendance.stuck(1005 + LIMIT) == ([0], LIMIT)
