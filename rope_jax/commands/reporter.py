"""How a procedure reports while it runs. The command line draws bars; a library caller may stay silent."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar

T = TypeVar("T")

# Called with bytes done and bytes in all.
ByteProgress = Callable[[int, int], None]
# Called with a step, from 1, and its metrics.
StepProgress = Callable[[int, dict], None]


class Reporter(Protocol):
    """What a procedure tells its caller, and asks it."""

    def say(self, text: str) -> None:
        """Reports one or several lines of text."""
        ...

    def bar(self, description: str) -> Callable[[Iterable[T]], Iterable[T]]:
        """A wrapper that reports progress through an iterable."""
        ...

    def byte_bar(self, description: str) -> AbstractContextManager[ByteProgress]:
        """A context that gives a function to report bytes read or written."""
        ...

    def training_bar(
        self, description: str, *, steps: int, start: int, tokens_per_step: int
    ) -> AbstractContextManager[StepProgress]:
        """A context that gives a function to report each training step.

        Training resumes from the step `start` of `steps` in all; `tokens_per_step` counts those of all devices.
        """
        ...

    def deferred_stop(self) -> AbstractContextManager[Callable[[], bool]]:
        """A context in which a request to stop does not interrupt; gives a function that tells whether there is one."""
        ...


class Silent:
    """Reports nothing and never asks to stop."""

    def say(self, text: str) -> None:
        pass

    def bar(self, description: str) -> Callable[[Iterable[T]], Iterable[T]]:
        return iter

    @contextmanager
    def byte_bar(self, description: str) -> Iterator[ByteProgress]:
        yield lambda done, total: None

    @contextmanager
    def training_bar(self, description: str, *, steps: int, start: int, tokens_per_step: int) -> Iterator[StepProgress]:
        yield lambda step, metrics: None

    @contextmanager
    def deferred_stop(self) -> Iterator[Callable[[], bool]]:
        yield lambda: False
