"""One worker process of a local Dask cluster: ``python -m hessrmt.workflows.dask_worker ADDRESS``.

It ends as soon as the process that started it does, however that comes about: its standard input is
a pipe from there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading

from distributed import Worker
from distributed.utils import silence_logging_cmgr


async def _work(address: str) -> None:
    # no limit of memory: Dask would pause or kill a worker that holds one large matrix, which
    # hessrmt has already compared with the free memory
    async with Worker(
        address, nthreads=1, memory_limit=0, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as worker:
        await worker.finished()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # an error of a task reaches the client; nothing else is worth a line
    with silence_logging_cmgr(logging.CRITICAL):
        asyncio.run(_work(sys.argv[1]))
