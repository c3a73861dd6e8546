"""Long operations: wait for a job of the core, show its progress, cancel it on Ctrl-C."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tpde._core import core

# (bytes done, bytes in all)
Move = Callable[[int, int], None]

# Short enough that Ctrl-C feels immediate: Python runs signal handlers between waits.
_STEP_MS = 50


def run(
    start: Callable[..., int],
    arguments: tuple[Any, ...],
    label: str,
    progress: bool | None,
    feed: Callable[[int, Callable[[], None]], None] | None = None,
) -> dict[str, Any]:
    """Runs the job that start(*arguments), a function of the binding, starts to its end and returns its report.

    progress: True shows a bar on stderr, False none, None only where stderr is a terminal.
    feed: called with the job once it runs, to give it what it waits for, and with a function to be called now and then,
        which raises the failure of the job if it has failed, and moves the bar.
    An exception, KeyboardInterrupt included, cancels the job and waits until it has removed its files.
    """
    binding = core()
    jobs: list[int] = []
    try:
        job = hold(jobs, start, *arguments)
        with bar(label, progress) as move:
            if feed is not None:

                def tick() -> None:
                    _wait(binding, job, 0, move)

                feed(job, tick)
            while not _wait(binding, job, _STEP_MS, move):
                pass
        report: dict[str, Any] = json.loads(binding.job_report(job))
        return report
    finally:
        for job in jobs:
            binding.job_free(job)  # cancels the job if it still runs


def hold(handles: list[int], make: Callable[..., int], *arguments: Any) -> int:
    """Appends make(*arguments), a function of the binding, to handles, and returns it.

    KeyboardInterrupt comes between two bytecodes. `handle = make(...)` has room for one, after which nobody would know
    the handle, and what it uses would be freed under it; here there is none.
    """
    handles.extend(itertools.starmap(make, [arguments]))
    return handles[-1]


def _wait(binding: Any, job: int, milliseconds: int, move: Move) -> bool:
    """Waits a moment and reports whether the job has ended; raises its failure."""
    finished: bool
    finished, done, total = binding.job_wait(job, milliseconds)
    move(done, total)
    return finished


@contextmanager
def bar(label: str, progress: bool | None) -> Iterator[Move]:
    """Gives a function that shows how many bytes are done, of how many. progress: as for run."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda done, total: None
        return
    from tqdm import tqdm

    with tqdm(
        desc=label, total=0, unit="B", unit_scale=True, dynamic_ncols=True, leave=False, file=sys.stderr
    ) as shown:

        def move(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield move
        shown.refresh()  # work that took less than tqdm's interval shows its rate, too
