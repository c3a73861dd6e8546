"""In which order a model uses its layers: learnt from one pass, expected of the next.

A pass is what lies between two calls of `begin`. Where nobody calls that (a compiled model runs no hooks, and a part of
a model may be called by itself), a pass ends when the layer that came first in it comes again unexpectedly: for a model
that runs the same way again and again, that finds a cycle, which is all that is needed to know what comes next.
"""

from __future__ import annotations

from collections.abc import Sequence


class Order:
    """The order that is expected, and what was seen of the pass that runs.

    uses: numbers of layers, as a pass uses them; a layer may come more than once. changes: how often it was re-learnt.
    """

    def __init__(self, guess: Sequence[int]) -> None:
        self.uses = list(guess)
        self.changes = 0
        self._at = 0  # position of the use that is expected next
        self._seen: list[int] = []
        self._short: list[int] | None = None  # the last pass, if it ended early
        self._as_expected = True  # this pass, so far
        self._told = False  # somebody calls begin

    def begin(self) -> bool:
        """Notes that a pass begins. Returns whether another order is expected now."""
        self._told = True
        return self._finish()

    def note(self, layer: int) -> tuple[int, bool]:
        """Notes a use. Returns its position in `uses` (-1: it is not there), and whether `uses` is another now."""
        changed = False
        if len(self._seen) >= 16 * max(len(self.uses), 64):  # nobody calls begin any more
            self._told = False
            self._seen.clear()
        expected = self.uses[self._at] if self._at < len(self.uses) else None
        if not self._told and self._seen:
            again = layer == self._seen[0] and (layer != expected or not self._as_expected)
            if again or (expected is None and layer == self.uses[0]):
                changed = self._finish()
                expected = self.uses[0]
        self._seen.append(layer)
        position = self._at
        if layer != expected:
            self._as_expected = False
            position = self._next(layer)
        if position >= 0:
            self._at = position + 1
        return position, changed

    def _next(self, layer: int) -> int:
        """Returns the next position of a layer, from the current one on and round."""
        for first, end in ((self._at, len(self.uses)), (0, self._at)):
            try:
                return self.uses.index(layer, first, end)
            except ValueError:
                continue
        return -1

    def _finish(self) -> bool:
        seen, self._seen, self._at, self._as_expected = self._seen, [], 0, True
        if not seen or seen == self.uses:
            self._short = None if seen else self._short
            return False
        # A pass that ended early was probably interrupted; one that ends there again was not.
        if seen == self.uses[: len(seen)] and seen != self._short:
            self._short = seen
            return False
        self.uses, self._short = seen, None
        self.changes += 1
        return True
