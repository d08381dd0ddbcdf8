"""An event loop in a thread of its own, and what other threads ask of it."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Runs `work` in a thread until it returns or raises."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self.failure: Exception | None = None
        """What `work` has raised."""
        self._work = work
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def check(self) -> None:
        """Raise what has ended the work."""
        if self.failure is not None:
            raise self.failure

    def ask(self, question: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returns there. Raises what has ended the work, or RuntimeError after its own end."""
        try:
            future = asyncio.run_coroutine_threadsafe(question, self._loop)
        except RuntimeError:
            question.close()
            self.check()
            raise
        while True:
            try:
                return future.result(0.5)
            except TimeoutError:
                if future.done():
                    raise
                if not self.alive:
                    self.check()
                    raise RuntimeError("nothing runs in the background any more") from None

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._work())
        except Exception as error:
            self.failure = error
        finally:
            self._loop.close()
