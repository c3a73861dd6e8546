"""Self-speculation: the bases of a streamed model, which are always in VRAM, draft tokens; the model verifies them.

    speculation = tpde.SelfSpeculation(model)
    output = speculation.generate(**inputs, max_new_tokens=200)
    print(speculation.counts)                                   # rounds, tokens drafted and accepted
    output = model.generate(**inputs, assistant_model=speculation.draft)     # the same, without the last round's counts

The loop is transformers' assisted generation: it asks an assistant for some tokens, runs the model once on all of them,
and keeps those that the model confirms. The assistant here is the model itself, in draft mode (`_stream_draft`): the
same modules, with a key-value cache of its own (`_draft_loop`). How many tokens it drafts follows from how many were
accepted, and from nothing else: with a seed, sampling gives the same tokens every time.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from tpde import _options, runtime
from tpde._draft_loop import Loop, common_prefix
from tpde._status import ArgumentError
from tpde._stream_draft import drafting, require_draft
from tpde._stream_engine import Engine

__all__ = ["Drafts", "SelfSpeculation"]

_UNLIMITED = 1 << 30


@dataclass(frozen=True)
class Drafts:
    """What became of drafts whose verification is known.

    rounds: passes of the model that verified some. drafted, accepted: tokens. A pass also gives a token of its own.
    """

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def share(self) -> float:
        """Accepted of drafted; 0 before the first."""
        return self.accepted / max(self.drafted, 1)

    def __str__(self) -> str:
        per_pass = (self.accepted + self.rounds) / max(self.rounds, 1)
        return (
            f"{self.rounds} rounds: {self.accepted} of {self.drafted} drafted tokens accepted "
            f"({100 * self.share:.1f}%), {per_pass:.2f} tokens a pass"
        )


class Length:
    """How many tokens to draft next.

    If each is accepted with probability a, a round of k gives (1 - a^(k+1)) / (1 - a) tokens, for the time of
    1 + k * cost passes: k is where that is most. a is estimated from the latest rounds.
    """

    def __init__(self, tokens: int | None, most: int, cost: float) -> None:
        self._fixed, self._most, self._cost = tokens, most, cost
        self.restart()

    def restart(self) -> None:
        """Forgets all rounds."""
        self._accepted, self._judged = 3.0, 4.0  # a guess that the first rounds outweigh

    def next(self) -> int:
        if self._fixed is not None:
            return self._fixed
        a = min(self._accepted / self._judged, 0.999)
        worth = [(1 - a ** (k + 1)) / (1 - a) / (1 + k * self._cost) for k in range(1, self._most + 1)]
        return 1 + worth.index(max(worth))

    def learn(self, accepted: int, drafted: int) -> None:
        """A round's outcome. What follows the first token that was refused tells nothing."""
        self._accepted = 0.8 * self._accepted + accepted
        self._judged = 0.8 * self._judged + min(accepted + 1, drafted)


class SelfSpeculation:
    """Has a streamed transformers model draft for itself.

    model: a transformers model that was streamed by `tpde.offload` or `tpde.load_into`, with bases; layers whose
        weights are whole in VRAM draft with these, and so do those that are too small for a base.
    tokens: how many to draft in each round; None: as many as pay, judged by how many are accepted.
    most: of them, if tokens is None.
    cost: what drafting a token takes, as a share of a pass of the streamed model; guides the choice, if tokens is None.
    graph: run the steps of a draft as a CUDA graph, in a cache of fixed size. None: on a GPU. If the model cannot be
        captured, its steps are run one by one, and `why_no_graph` says why.

    Greedy output is that of the model without a draft, and sampled output has its distribution: tokens are those of the
    model's own forwards over several tokens at once. Where such a forward rounds differently from one over a single
    token, as matrix products of other sizes may, two logits that are all but equal can change places.

    The draft's cache and graph take VRAM out of what `reserve` leaves, from the first draft to `reset`, or as long as
    the object lives. Not for use by several threads at once. One prompt at a time: transformers' assisted generation
    takes no batches.

    Raises ArgumentError if model is not streamed, UnsupportedError if a layer has nothing to draft with.

    Attributes:
        draft: the model in draft mode: an `assistant_model` for `generate`, and a model of its own. It shares every
            module and parameter. Forwards through it keep no gradients, and leave the streaming as it was.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        tokens: int | None = None,
        most: int = 32,
        cost: float = 0.05,
        graph: bool | None = None,
    ) -> None:
        tokens = None if tokens is None else _count("tokens", tokens)
        most = _count("most", most)
        if not isinstance(cost, (int, float)) or not 0 < cost < float("inf"):
            raise ArgumentError(f"cost: expected a positive number, got {cost!r}")
        if isinstance(model, _Draft):
            raise ArgumentError("model: is a draft, expected the model that it drafts for")
        self._model = model
        engine = runtime.of(model)._alive()[0]
        require_draft(engine)
        self._drafter = _Drafter(Length(tokens, most, cost), engine)
        self.draft: Any = _drafting_copy(model, self._drafter)
        # Weak: without cycles, all memory is given back when this and the draft are dropped, not some time later.
        self._drafter.loop = Loop(weakref.proxy(self.draft), engine, graph)

    @property
    def counts(self) -> Drafts:
        """What became of the drafts so far."""
        return self._drafter.counts

    @property
    def why_no_graph(self) -> str | None:
        """Why steps of the draft are not a CUDA graph; None if they are, or were not tried yet."""
        return self._drafter.loop.why_no_graph

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Returns model.generate(..., assistant_model=self.draft), and counts the last round, too."""
        if not hasattr(self._model, "generate"):
            raise ArgumentError(f"model: a {type(self._model).__name__} has no generate")
        output = cast(Any, self._model).generate(*args, **kwargs, assistant_model=self.draft)
        self._drafter.judge((output if isinstance(output, torch.Tensor) else output.sequences)[0].tolist())
        return output

    def reset(self) -> None:
        """Gives the memory of the draft's cache and graph back; the next draft makes others."""
        self._drafter.reset()


class _Drafter:
    """What a draft refers to: its loop, and what became of its tokens."""

    loop: Loop

    def __init__(self, length: Length, engine: Engine) -> None:
        self.engine = engine
        self.counts = Drafts()
        self._length = length
        self._pending: tuple[list[int], list[int]] | None = None  # what was drafted for, and what

    def reset(self) -> None:
        self.loop.reset()
        self._pending = None

    def candidates(self, ordinary: Any, kwargs: dict[str, Any]) -> Any:
        """What `generate` of the draft returns to transformers' assisted generation.

        ordinary: `generate` of the model's class, for what the loop does not do.
        """
        ids: torch.Tensor = kwargs["input_ids"]
        config = kwargs["generation_config"]
        before = ids[0].tolist()
        if not before:
            raise ArgumentError("input_ids: expected tokens to draft behind, got none; a draft takes no inputs_embeds")
        if not self.judge(before) and config.do_sample:
            self._length.restart()  # how many are drafted decides what the generator of random numbers is used for
        count = min(self._length.next(), kwargs["max_new_tokens"])
        if self.loop.takes(kwargs):
            from transformers.generation.utils import GenerateDecoderOnlyOutput

            try:
                tokens, scores = self.loop.run(
                    ids,
                    before,
                    count,
                    kwargs["max_new_tokens"],
                    kwargs["logits_processor"],
                    config.do_sample,
                    "logits_to_keep" in kwargs,
                    _ends(config.eos_token_id),
                )
            except BaseException:
                self.loop.reset()  # layers of the cache may hold different tokens
                raise
            output: Any = GenerateDecoderOnlyOutput(sequences=cast(Any, tokens), scores=cast(Any, scores))
        else:
            kwargs |= {"max_new_tokens": count, "min_new_tokens": min(kwargs["min_new_tokens"], count)}
            output = ordinary(**kwargs)
        self._pending = before, output.sequences[0, len(before) :].tolist()
        return output

    def judge(self, tokens: list[int]) -> bool:
        """Compares the last draft with what became of it. Returns whether tokens go on from there."""
        if self._pending is None:
            return False
        before, drafted = self._pending
        self._pending = None
        if tokens[: len(before)] != before or len(tokens) == len(before):
            return False  # another prompt: how that one ended is not known
        accepted = common_prefix(drafted, tokens[len(before) :])
        self._length.learn(accepted, len(drafted))
        old = self.counts
        self.counts = Drafts(old.rounds + 1, old.drafted + len(drafted), old.accepted + accepted)
        return True


class _Draft:
    """What the class of a model gets in front of it."""

    _drafter: _Drafter

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad(), drafting(self._drafter.engine):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        ordinary = super().generate  # type: ignore[misc]
        if getattr(kwargs.get("generation_config"), "is_assistant", False) and "input_ids" in kwargs and not args:
            return self._drafter.candidates(ordinary, kwargs)
        return ordinary(*args, **kwargs)


def _drafting_copy(model: nn.Module, drafter: _Drafter) -> nn.Module:
    """Returns an object that shares everything with model but its class and its settings for generation."""
    draft = copy.copy(model)
    cls = type(model)
    draft.__class__ = type(
        cls.__name__, (_Draft, cls), {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    )
    draft.__dict__["_drafter"] = drafter
    config = getattr(model, "generation_config", None)
    if config is not None:
        config = copy.deepcopy(config)
        # The draft decides itself how many tokens it gives.
        config.num_assistant_tokens = _UNLIMITED
        config.num_assistant_tokens_schedule = "constant"
        config.assistant_confidence_threshold = 0.0
        draft.__dict__["generation_config"] = config
    return draft


def _count(what: str, value: Any) -> int:
    number = _options.whole(value)
    if number is None or not 1 <= number <= 1024:
        raise ArgumentError(f"{what}: expected 1 to 1024, got {value!r}")
    return number


def _ends(eos: Any) -> set[int]:
    """Tokens that end a sequence."""
    if eos is None:
        return set()
    if isinstance(eos, torch.Tensor):
        eos = eos.tolist()
    return {eos} if isinstance(eos, int) else set(eos)
