"""What a training takes of the machine, sampled between its steps, under the names that MLflow's page of system metrics knows."""

import time
from collections.abc import Callable

import psutil

EVERY_SECONDS = 10.0
MEGABYTE = 1e6


class SystemMetrics:
    """Samples at most every `every_seconds`; `gpu` adds what it says of the GPU."""

    def __init__(
        self,
        gpu: Callable[[], dict[str, float]] = dict,
        *,
        every_seconds: float = EVERY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gpu, self._every, self._clock = gpu, every_seconds, clock
        self._last = clock()
        psutil.cpu_percent()  # the first call has nothing to measure from

    def due(self) -> bool:
        """Whether the last sample is `every_seconds` old."""
        return self._clock() - self._last >= self._every

    def sample(self) -> dict[str, float]:
        """Percentages from 0 to 100, and megabytes of 10^6 bytes; `process_memory_megabytes` is this process's alone."""
        self._last = self._clock()
        memory = psutil.virtual_memory()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "process_memory_megabytes": psutil.Process().memory_info().rss / MEGABYTE,
            **self._gpu(),
        }
