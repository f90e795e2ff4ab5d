"""Faults of a data set: the first one raises, or, while ``collect_faults`` runs, all of them are listed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from protoseg.types import ProtosegError

_collected: ContextVar[list[str] | None] = ContextVar("faults", default=None)


def fault(message: str, each: Iterable[str] | None = None) -> None:
    """Tell a fault that one can go on after, by leaving a file out.

    Args:
        message: all of it in one message.
        each: the same, one message per file.

    Raises:
        ProtosegError: always, except inside ``collect_faults``.
    """
    found = _collected.get()
    if found is None:
        raise ProtosegError(message)
    found.extend([message] if each is None else each)


@contextmanager
def collect_faults() -> Iterator[list[str]]:
    """Inside, ``fault`` adds its messages to the list that this gives."""
    found: list[str] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)
