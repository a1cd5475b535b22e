"""Many images at once on all cores, given back in their order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from pixelhdm.data.reading.remote import may_fork
from pixelhdm.errors import UserError
from pixelhdm.processes import start_helper

Task, Result = TypeVar("Task"), TypeVar("Result")
AHEAD = 3  # tasks per process that are given out before their turn


def in_order(
    function: Callable[[Task], Result], tasks: Iterable[Task], num_processes: int
) -> Iterator[Result]:
    """The results of a function in the order of its tasks, with a bounded number in memory.

    Args:
        function: what to do; picklable.
        tasks: its arguments; read a little ahead.
        num_processes: how many work; 1 works in this process.

    Raises:
        UserError: a process was killed.
    """
    if num_processes == 1:
        yield from map(function, tasks)
        return
    context = get_context("fork" if may_fork() else "spawn")  # the former starts at once
    pool = ProcessPoolExecutor(num_processes, context, start_helper)
    waiting: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) > AHEAD * num_processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "processes must live until their work is done, got one that was killed, by a lack of "
            "memory as a rule. Set num_processes lower; the same command goes on where it stopped."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
