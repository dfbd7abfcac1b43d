"""Jobs that wait, in an order that is fair to users whatever each asks for, and in batches of what is alike."""

from collections.abc import Sequence

from anystep.studio.job import Job


class QueueFull(Exception):
    """No more images may wait. `retry_after` is the number of seconds after which to ask again."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} images wait already: ask again in {retry_after} seconds")
        self.retry_after = retry_after


class FairQueue:
    """Self-clocked fair queueing (Golestani, INFOCOM 1994), in which an image's length is its network evaluations.

    A job's turn is when it would end if every user had the same share of the machine; a user who asks for a hundred
    images delays another's one by little more than one. It is not safe for threads: the engine holds a lock.
    """

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._now = 0.0
        self._last: dict[str, float] = {}  # the last turn of each user that has jobs here

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def cost(self) -> int:
        """Network evaluations of all that wait."""
        return sum(job.cost for job in self._jobs)

    def add(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.turn = self._last[job.user] = max(self._now, self._last.get(job.user, 0.0)) + job.cost
        self._jobs = sorted([*self._jobs, *jobs], key=lambda job: job.turn)  # a stable order: the first come first

    def head(self) -> Job | None:
        """The job whose turn it is."""
        return self._jobs[0] if self._jobs else None

    def like_head(self) -> int:
        """How many jobs, the head among them, could be drawn with it."""
        return sum(job.request.together() == self._jobs[0].request.together() for job in self._jobs)

    def take(self, most: int) -> list[Job]:
        """The head and what can be drawn with it, in the order of their turns."""
        head = self._jobs[0]
        batch = [job for job in self._jobs if job.request.together() == head.request.together()][:most]
        self._remove(batch)
        self._now = max(self._now, head.turn)
        return batch

    def take_given_up(self) -> list[Job]:
        """Those for which nobody waits any more."""
        gone = [job for job in self._jobs if job.given_up()]
        self._remove(gone)
        return gone

    def take_all(self) -> list[Job]:
        """All of them: the queue is empty."""
        jobs, self._jobs, self._last = self._jobs, [], {}
        return jobs

    def _remove(self, gone: Sequence[Job]) -> None:
        chosen = set(map(id, gone))
        self._jobs = [job for job in self._jobs if id(job) not in chosen]
        users = {job.user for job in self._jobs}
        # who has nothing here and is not ahead of the clock is like somebody new
        self._last = {user: turn for user, turn in self._last.items() if user in users or turn > self._now}
