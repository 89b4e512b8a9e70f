"""The last hour of GPU readings, one a second."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

from core.common.errors import DeckError
from core.gpu.snapshot import GpuSnapshot, read_snapshot

INTERVAL_S = 1.0
SAMPLES_KEPT = 3600
STOP_WAIT_S = 2.0


class Monitor:
    """Samples the GPUs in one background thread, whether or not a page looks: NVML is asked once for all.

    Args:
        read: takes one snapshot.
        clock: seconds that never jump, to keep the beat.
        new_event: makes what the thread waits on between samples.
    """

    def __init__(
        self,
        read: Callable[[], GpuSnapshot] = read_snapshot,
        clock: Callable[[], float] = time.monotonic,
        new_event: Callable[[], threading.Event] = threading.Event,
    ) -> None:
        self._read = read
        self._clock = clock
        self._new_event = new_event
        self._control = threading.Lock()
        self._samples_lock = threading.Lock()
        self._samples: deque[GpuSnapshot] = deque(maxlen=SAMPLES_KEPT)
        self._sampled = threading.Event()
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> Monitor:
        """Begin to sample; nothing happens where it already does. Returns itself."""
        with self._control:
            if self._stop is None:
                self._stop = self._new_event()
                self._thread = threading.Thread(target=self._run, args=(self._stop,), name="gpu-monitor", daemon=True)
                self._thread.start()
        return self

    def stop(self) -> None:
        """Sample no more; what was sampled stays. A thread that hangs in the driver is left behind."""
        with self._control:
            if self._stop is not None and self._thread is not None:
                self._stop.set()
                self._thread.join(STOP_WAIT_S)
                self._stop = self._thread = None

    def latest(self, wait_s: float = 0.0) -> GpuSnapshot | None:
        """The newest sample; the first one is waited for, at most `wait_s`, and None when it has not come."""
        self._sampled.wait(wait_s)
        with self._samples_lock:
            return self._samples[-1] if self._samples else None

    def history(self, seconds: float) -> list[GpuSnapshot]:
        """The samples of the last `seconds` before the newest one, oldest first."""
        with self._samples_lock:
            samples = list(self._samples)
        return [sample for sample in samples if sample.time_s >= samples[-1].time_s - seconds]

    def _run(self, stop: threading.Event) -> None:
        began, beat = self._clock(), 0
        while not stop.is_set():
            sample = self._sample()
            with self._samples_lock:
                self._samples.append(sample)
            self._sampled.set()
            # The next beat still to come: a slow reading skips beats and never shifts them.
            beat = max(beat + 1, math.ceil((self._clock() - began) / INTERVAL_S))
            stop.wait(began + beat * INTERVAL_S - self._clock())

    def _sample(self) -> GpuSnapshot:
        try:
            return self._read()
        except Exception as error:  # The thread's edge: the page shows it, the next beat tries again.
            return GpuSnapshot(time.time(), error=DeckError("gpu_read_failed", reason=repr(error)))
