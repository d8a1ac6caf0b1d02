"""The thread that owns the running batch, and the queues of requests and tokens."""

import asyncio
import queue
import threading
from collections.abc import Callable

from transnormer_jax.inference import ContinuousBatch, Progress, Request

# How long an idle thread, or a stream without news, sleeps before it looks whether the other side is still there.
_PATIENCE_SECONDS = 0.5


class OverloadedError(Exception):
    """More requests are open than may be."""


class EngineStoppedError(Exception):
    """The thread has ended, by an exception of its own or because the server does."""


class Engine:
    """Runs a `ContinuousBatch` in a thread of its own, for any number of coroutines of one event loop.

    Attributes:
      error: the exception that ended the thread, or None.
      max_requests: how many may be open at one time.
    """

    def __init__(self, batch: ContinuousBatch, max_requests: int):
        """Takes a batch, which nobody else may touch from now on, and how many requests may be open at one time."""
        self.error: BaseException | None = None
        self._batch, self.max_requests = batch, max_requests
        self._num_open = 0
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._listeners: dict[int, Callable[[Progress | None], None]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests go on."""
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """Requests in a slot."""
        return self._batch.running

    @property
    def waiting(self) -> int:
        """Requests without one."""
        return self._batch.waiting

    def open(self, request: Request) -> "Stream":
        """Puts a request into the queue, from a coroutine; whoever does must `close` what it returns.

        Raises:
          OverloadedError: too many requests are open.
        """
        if self._num_open >= self.max_requests:
            raise OverloadedError
        self._num_open += 1
        loop, news = asyncio.get_running_loop(), asyncio.Queue[Progress | None]()
        numbers: list[int] = []

        def submit() -> None:
            number = self._batch.submit(request)
            numbers.append(number)
            self._listeners[number] = lambda progress: _tell(loop, news, progress)

        def cancel() -> None:
            for number in numbers:
                self._batch.cancel(number)
                self._listeners.pop(number, None)

        def close() -> None:
            self._num_open -= 1
            self._commands.put(cancel)

        self._commands.put(submit)
        return Stream(self, news, close)

    def stop(self) -> None:
        """Ends the thread after the step under way; open streams end with `EngineStoppedError`."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._obey()
                if not self._batch.idle:
                    for progress in self._batch.step():
                        self._listeners[progress.request](progress)
        except BaseException as error:
            self.error = error
            raise
        finally:
            for deliver in self._listeners.values():
                deliver(None)

    def _obey(self) -> None:
        """Carries out what coroutines want; with nothing else to do, waits for it."""
        try:
            self._commands.get(timeout=_PATIENCE_SECONDS if self._batch.idle else 0)()
            while True:
                self._commands.get_nowait()()
        except queue.Empty:
            pass


class Stream:
    """The news of one request, to be iterated over and then closed, which frees its slot."""

    def __init__(self, engine: Engine, news: "asyncio.Queue[Progress | None]", close: Callable[[], None]):
        """`Engine.open` makes it."""
        self._engine, self._news, self._close = engine, news, close
        self._last = False

    def close(self) -> None:
        """Leaves the batch; again, it does nothing."""
        close, self._close = self._close, lambda: None
        close()

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Progress:
        if self._last:
            raise StopAsyncIteration
        while True:
            try:
                progress = await asyncio.wait_for(self._news.get(), _PATIENCE_SECONDS)
            except TimeoutError:
                if self._engine.alive:
                    continue
                progress = None
            if progress is None:
                raise EngineStoppedError
            self._last = progress.last
            return progress


def _tell(loop: asyncio.AbstractEventLoop, news: "asyncio.Queue[Progress | None]", progress: Progress | None) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(news.put_nowait, progress)
