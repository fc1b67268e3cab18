# ruff: noqa: N802
"""mpi4py's communicators over threads of one process: the few methods that hessrmt uses.

One thread runs at a time, until it waits for others: torch.func's state belongs to the process.
"""

import threading

import numpy as np

RUNNING = threading.Lock()


class Hub:
    def __init__(self, size):
        self.size = size
        self.barrier = threading.Barrier(size)
        self.slots = [None] * size


class Ended(BaseException):
    """What Abort does to the process that calls it."""


class Communicator:
    def __init__(self, hub, rank):
        self.hub, self.rank = hub, rank

    def Get_rank(self):
        return self.rank

    def Get_size(self):
        return self.hub.size

    def allgather(self, value):
        self.hub.slots[self.rank] = value
        self._wait()
        found = list(self.hub.slots)
        self._wait()
        return found

    def _wait(self):
        RUNNING.release()
        try:
            self.hub.barrier.wait(600)
        finally:
            RUNNING.acquire()

    def bcast(self, value, root):
        return self.allgather(value)[root]

    def Allreduce(self, send, receive):
        receive[...] = sum(self.allgather(send))

    def Alltoallv(self, send, receive):
        (values, counts), (target, expected) = send, receive
        pieces = self.allgather(np.split(values, np.cumsum(counts)[:-1]))
        mine = [piece[self.rank] for piece in pieces]
        assert [piece.size for piece in mine] == list(expected)
        target[...] = np.concatenate(mine)

    def Split(self, colour, key):
        asked = self.allgather((colour, key))
        group = sorted(
            (other for other, (c, _) in enumerate(asked) if c == colour),
            key=lambda other: (asked[other][1], other),
        )
        hubs = self.allgather(Hub(len(group)) if self.rank == group[0] else None)
        return Communicator(hubs[group[0]], group.index(self.rank))

    def Abort(self, code):
        self.hub.barrier.abort()
        raise Ended(code)


def run(size, function):
    """Call it with a communicator in each of several threads; results or errors, by rank."""
    hub, found = Hub(size), [None] * size

    def call(rank):
        with RUNNING:
            try:
                found[rank] = function(Communicator(hub, rank))
            except BaseException as error:
                found[rank] = error

    threads = [threading.Thread(target=call, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(900)
        assert not thread.is_alive(), "a process waits for ever"
    return found
