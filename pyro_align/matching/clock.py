"""Where the time goes: gain matrices, assignments, the rest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Wall time in seconds since it was made, split by part.

    Args:
        limit: Seconds after which :attr:`expired` holds, or None.
    """

    def __init__(self, limit: float | None = None):
        self._start = time.perf_counter()
        self._limit = limit
        self._parts = {"gain": 0.0, "assignment": 0.0}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._parts[part] += time.perf_counter() - start

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    @property
    def left(self) -> float | None:
        """Seconds until the limit, positive, or None without one."""
        return None if self._limit is None else max(1e-9, self._limit - self.elapsed)

    @property
    def expired(self) -> bool:
        """Whether the limit has passed."""
        return self._limit is not None and self.elapsed >= self._limit

    def seconds(self) -> dict[str, float]:
        """Seconds by part; ``rest`` is what is neither gain matrices nor assignments."""
        return {**self._parts, "rest": max(0.0, self.elapsed - sum(self._parts.values()))}
