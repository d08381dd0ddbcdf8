"""An event loop whose clock stands still while anything can run and then jumps to the next timer: hours take
milliseconds, and the same seed gives the same schedule."""

import asyncio
from collections.abc import Coroutine
from itertools import count
from typing import Any


class Stuck(AssertionError):
    """Nothing can run any more, and nothing will."""


class _Timers:
    """In the place of a selector: no file is watched, and waiting is only counted."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self.loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Stuck("every task waits for another one")
        self.loop.now += timeout
        if self.loop.now > self.loop.most_s:
            raise Stuck(f"not done after {self.loop.most_s:g} s")
        return []


class _Task(asyncio.Task):
    """A task whose hash is its number, so that the order of a set of tasks is the same in each process."""

    numbers = count()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.number = next(self.numbers)
        super().__init__(*arguments, **options)

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.BaseEventLoop):
    """`most_s`: virtual seconds after which a schedule has hung."""

    def __init__(self, most_s: float) -> None:
        super().__init__()
        self.now, self.most_s = 0.0, most_s
        self._selector = _Timers(self)
        _Task.numbers = count()
        self.set_task_factory(lambda loop, coroutine, **options: _Task(coroutine, loop=loop, **options))
        self.faults: list[str] = []
        self.set_exception_handler(lambda loop, context: self.faults.append(str(context)))

    def time(self) -> float:
        return self.now

    def end(self) -> None:
        """Cancel what is left, and close."""
        left = asyncio.all_tasks(self)
        for task in left:
            task.cancel()
        if left:
            self.run_until_complete(asyncio.wait(left))
        self.close()

    def run_in_executor(self, executor: Any, function: Any, *arguments: Any) -> asyncio.Future:
        """What takes a thread elsewhere is done at once here."""
        future = self.create_future()
        future.set_result(function(*arguments))
        return future

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What the coroutine returns; every exception that nobody has looked at is a fault of the schedule."""
        result = self.run_until_complete(work)
        assert not self.faults, self.faults
        return result
