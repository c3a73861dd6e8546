"""A budget of VRAM and what of it is left for activations and caches: rules that planning and running share."""

from __future__ import annotations

from tpde import _options
from tpde._residency import BudgetError, amount

_RESERVE = 512 << 20  # at most, unless the caller says what


def check(vram: int | str | None, reserve: int | str | None) -> None:
    """Raises ArgumentError for what is no size, before anything is done."""
    if vram is not None:
        _options.size_in_bytes("vram", vram)
    kept(reserve)


def kept(reserve: int | str | None) -> int | None:
    """Returns what the caller says of the reserve, in bytes; None: nothing."""
    return None if reserve is None else _options.size_in_bytes("reserve", reserve, least=0)


def reserved(budget: int, reserve: int | None) -> int:
    """Returns what of a budget is left for others: an eighth, 512 MiB at most, unless the caller says what."""
    return min(_RESERVE, budget // 8) if reserve is None else reserve


def left(budget: int, reserve: int | None) -> int:
    """Returns what of a budget is not reserved."""
    return budget - reserved(budget, reserve)


def with_reserve(needed: int, reserve: int | None) -> int:
    """Returns the smallest budget of which so many bytes are not reserved."""
    if reserve is not None:
        return needed + reserve
    budget = max(needed * 8 // 7 - 8, 0)
    while left(budget, None) < needed:
        budget = budget + 1 if budget // 8 < _RESERVE else needed + _RESERVE
    return budget


def in_total(error: BudgetError, budget: int, reserve: int | None, what: str = "") -> BudgetError:
    """Says of a budget with its reserve what the planner said of what is left."""
    left_out = amount(reserved(budget, reserve))
    return BudgetError(budget, with_reserve(error.smallest, reserve), f" beside {left_out} for activations{what}")
