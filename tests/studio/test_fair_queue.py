"""Turns: a share of the machine for each user, whatever each asks for; the order of one user's own is kept."""

import hypothesis.strategies as st
from hypothesis import given

from anystep.studio.fair_queue import FairQueue
from anystep.studio.job import Job
from anystep.studio.request import ImageRequest

COSTS = st.lists(st.integers(1, 256), min_size=1, max_size=12)


def job(user: str, cost: int = 1, steps: int = 1) -> Job:
    return Job(ImageRequest("a whale", steps=steps), user, cost)


def taken(queue: FairQueue, most: int = 1) -> list[Job]:
    order = []
    while queue:
        order += queue.take(most)
    return order


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 100)), max_size=30))
def test_every_job_is_taken_once_and_those_of_a_user_in_their_order(jobs: list[tuple[str, int]]) -> None:
    queue = FairQueue()
    added = [job(user, cost, steps=number + 1) for number, (user, cost) in enumerate(jobs)]
    queue.add(added)
    assert queue.cost == sum(cost for _, cost in jobs)
    order = taken(queue)
    for user in "abc":
        own = [each for each in order if each.user == user]
        assert own == [each for each in added if each.user == user]
    assert len(order) == len(added)


@given(COSTS, COSTS)
def test_users_that_wait_are_served_alike_up_to_one_job_of_each(one: list[int], other: list[int]) -> None:
    queue = FairQueue()
    queue.add([job("one", cost, number + 1) for number, cost in enumerate(one)])
    queue.add([job("other", cost, number + 1) for number, cost in enumerate(other)])
    served, left = {"one": 0, "other": 0}, {"one": len(one), "other": len(other)}
    for each in taken(queue):
        served[each.user] += each.cost
        left[each.user] -= 1
        if not all(left.values()):
            break
        assert abs(served["one"] - served["other"]) <= max(one) + max(other)


def test_who_comes_late_neither_waits_for_what_others_have_queued_nor_has_saved_up_turns() -> None:
    queue = FairQueue()
    queue.add([job("early", 10) for _ in range(10)])
    for _ in range(3):
        queue.take(1)
    queue.add([job("late", 10) for _ in range(10)])
    users = [each.user for each in taken(queue)]
    assert users[:6].count("late") in (2, 3, 4)


def test_a_batch_is_what_is_like_the_head_from_all_users() -> None:
    queue = FairQueue()
    queue.add([job("a"), job("a", steps=2), job("a")])
    queue.add([job("b"), job("b", steps=2)])
    assert queue.like_head() == 3
    assert [each.user for each in queue.take(16)] == ["a", "b", "a"]
    assert [each.request.steps for each in queue.take(16)] == [2, 2]
    assert not queue
