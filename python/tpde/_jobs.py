"""Long operations: wait for a job of the core, show its progress, cancel it on Ctrl-C."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

from tpde._core import core

# Short enough that Ctrl-C feels immediate: Python runs signal handlers between waits.
_STEP_MS = 50


def run(start: Callable[..., int], arguments: tuple[Any, ...], label: str, progress: bool | None) -> dict[str, Any]:
    """Runs the job that start(*arguments), a function of the binding, starts to its end and returns its report.

    progress: True shows a bar on stderr, False none, None only where stderr is a terminal.
    An exception, KeyboardInterrupt included, cancels the job and waits until it has removed its files.
    """
    binding = core()
    show = sys.stderr.isatty() if progress is None else progress
    jobs: list[int] = []
    try:
        job = hold(jobs, start, *arguments)
        if show:
            _wait_with_bar(binding, job, label)
        else:
            while not binding.job_wait(job, _STEP_MS)[0]:
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


def _wait_with_bar(binding: Any, job: int, label: str) -> None:
    from tqdm import tqdm

    with tqdm(desc=label, total=0, unit="B", unit_scale=True, dynamic_ncols=True, leave=False, file=sys.stderr) as bar:
        finished = False
        while not finished:
            finished, done, total = binding.job_wait(job, _STEP_MS)
            bar.total = total
            bar.update(done - bar.n)
        bar.refresh()  # work that took less than tqdm's interval shows its rate, too
