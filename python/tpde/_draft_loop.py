"""Drafting some tokens: a loop over single steps of a model, on a CUDA graph where there can be one.

What it computes is what `generate` of transformers would; it is apart from that because a step of a draft takes less
time than `generate` takes to prepare, and because a graph needs a cache that stays where it is.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from tpde._stream_engine import Engine

_ROUND = 256  # capacities of caches are multiples
_FEW = 4  # tokens that are not worth a forward of their own
_SPARE = 8  # tokens of a cache that are used while a graph is made
_CACHES = ("cache", "past_key_values")  # what transformers calls it from 5.24 on, and before


class Loop:
    """The steps of one draft at a time. graph: see SelfSpeculation."""

    def __init__(self, model: Any, engine: Engine, graph: bool | None) -> None:
        self.why_no_graph: str | None = None if graph is not False else "graph=False"
        self._model, self._engine = model, engine
        self._fixed = graph is True or (graph is None and engine.memory.device.type == "cuda")
        self._cache: Any = None
        self._capacity = 0  # of a cache of fixed size
        self._cached: list[int] = []  # tokens in the cache
        self._step: _Captured | None = None
        # Where steps are captured. One for all: cuBLAS keeps a workspace, 32 MiB on an H200, for each stream.
        self._side: torch.cuda.Stream | None = None

    def reset(self) -> None:
        """Gives cache and graph back."""
        self._step = self._cache = None
        self._capacity, self._cached = 0, []

    def takes(self, kwargs: dict[str, Any]) -> bool:
        """Whether the loop does what is asked of generate: one prompt, unpadded, of a model with plain caches."""
        known = {
            "input_ids", "attention_mask", "position_ids", "max_new_tokens", "min_new_tokens", "generation_config",
            "logits_processor", "logits_to_keep", "use_cache", "cache_position", *_CACHES,
        }  # fmt: skip
        if kwargs.keys() - known or any(kwargs.get(name) is not None for name in _CACHES):
            return False
        if len(kwargs["input_ids"]) != 1:
            return False
        mask = kwargs.get("attention_mask")
        if mask is not None and not bool(mask.all()):
            return False
        return not self._model.config.is_encoder_decoder and self._plain()

    def run(
        self, ids: torch.Tensor, before: list[int], count: int, most: int, processors: Sequence[Any], sample: bool,
        keep: bool, ends: set[int],
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:  # fmt: skip
        """Drafts behind ids [1, n], which are the tokens `before`.

        count: of tokens, at least 1. most: tokens that may come in all, in this round and later ones.
        processors: of logits, transformers'. keep: the model takes logits_to_keep.
        ends: tokens behind which nothing is drafted.
        Returns ids and the tokens, [1, n + count or fewer], and what each was chosen by, [1, vocabulary].
        """
        options = {"logits_to_keep": 1} if keep else {}
        with torch.inference_mode(False), torch.no_grad():
            self._prepare(before, count, most)
            known = len(self._cached)
            new = ids[:, known:]
            if known and new.shape[1] <= _FEW and self._fixed and self.why_no_graph is None:
                # What the model said of the last draft. A graph takes them one by one, far faster than without.
                for i in range(new.shape[1]):
                    logits = self._next(new[:, i : i + 1], known + i, options)
            else:
                logits = self._forward(new, options)
            tokens = ids
            scores = []
            for i in range(count):
                score = logits.to(torch.float32, copy=True)
                for processor in processors:
                    score = processor(tokens, score)
                chosen = torch.multinomial(score.softmax(-1), 1) if sample else score.argmax(-1, keepdim=True)
                tokens = torch.cat([tokens, chosen], dim=1)
                scores.append(score)
                if i + 1 < count:
                    logits = self._next(chosen, len(before) + i, options)
        drafted = tokens[0, len(before) :].tolist()  # the only wait for the device
        self._cached = before + drafted[:-1]
        for i, token in enumerate(drafted):
            if token in ends:
                return tokens[:, : len(before) + i + 1], tuple(scores[: i + 1])
        return tokens, tuple(scores)

    # ---- caches -------------------------------------------------------------------

    def _plain(self) -> bool:
        """Whether every layer of a cache keeps all tokens, in one tensor each, so that some can be taken back."""
        try:
            from transformers.cache_utils import DynamicCache, DynamicLayer, StaticCache, StaticLayer
        except ImportError:  # other versions
            return False
        if self._cache is not None:
            return True
        cache = DynamicCache(config=self._model.config)
        if not all(type(layer) is DynamicLayer for layer in cache.layers):
            return False
        if self._fixed:
            layers = StaticCache(config=self._model.config, max_cache_len=1).layers
            if not all(type(one) is StaticLayer and hasattr(one, "cumulative_length") for one in layers):
                self._fixed, self.why_no_graph = False, "the model's cache cannot be of fixed size"
        return True

    def _prepare(self, before: list[int], count: int, most: int) -> None:
        """Has the cache hold what is known of the tokens `before`, all but the last at most."""
        from transformers.cache_utils import DynamicCache, StaticCache

        need = len(before) + count + _SPARE
        if self._fixed and need > self._capacity:
            self.reset()
            # Twice what there is, so that a long text makes few caches, but no more than there will be.
            room = max(need, min(len(before) + most + _SPARE, 2 * need))
            self._capacity = -(-room // _ROUND) * _ROUND
            self._cache = StaticCache(config=self._model.config, max_cache_len=self._capacity)
        elif self._cache is None:
            self._cache = DynamicCache(config=self._model.config)
        known = min(common_prefix(self._cached, before), len(before) - 1)
        if self._fixed:
            _rewind(self._cache, known)
        elif known < self._cache.get_seq_length():
            self._cache.crop(known - self._cache.get_seq_length())
        self._cached = before[:known]

    # ---- steps --------------------------------------------------------------------

    def _next(self, token: torch.Tensor, length: int, options: dict[str, Any]) -> torch.Tensor:
        """Logits [1, vocabulary] behind a token [1, 1], `length` being those before it. Good until the next call."""
        if self._fixed and self.why_no_graph is None and token.is_cuda:
            engine = self._engine
            with engine.lock:  # the bases stay where they are meanwhile
                if self._step is None or self._step.plan is not engine.plan:
                    self._step = None
                    self._side = self._side or torch.cuda.Stream(token.device)  # type: ignore[no-untyped-call]
                    try:
                        self._step = _Captured(
                            self._model, engine.plan, self._cache, token, length, options, self._side
                        )
                    except Exception as error:  # whatever a model does that cannot be captured
                        self.why_no_graph = f"{type(error).__name__}: {error}"
                        warnings.warn(
                            f"the draft cannot be captured in a CUDA graph, and is slower without: {self.why_no_graph}",
                            RuntimeWarning,
                            stacklevel=2,
                        )
                        _rewind(self._cache, length)
                if self._step is not None:
                    return self._step(token)
        return self._forward(token, options)

    def _forward(self, tokens: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        return _logits(self._model, tokens, self._cache, options)


class _Captured:
    """A step of a model as a CUDA graph, good for one cache and one plan, which says where bases are.

    side: the stream that it is captured on, and runs on before that.
    """

    def __init__(
        self, model: Any, plan: object, cache: Any, token: torch.Tensor, length: int, options: dict[str, Any],
        side: torch.cuda.Stream,
    ) -> None:  # fmt: skip
        self.plan = plan
        self._token = token.clone()

        def step() -> torch.Tensor:
            return _logits(model, self._token, cache, options)

        current = torch.cuda.current_stream(token.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(2):  # loads kernels, and whatever else is done once
                step()
        current.wait_stream(side)
        _rewind(cache, length)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"):
            self._logits = step()
        _rewind(cache, length)

    def __call__(self, token: torch.Tensor) -> torch.Tensor:
        self._token.copy_(token)
        self._graph.replay()
        return self._logits


def _logits(model: Any, tokens: torch.Tensor, cache: Any, options: dict[str, Any]) -> torch.Tensor:
    """Returns logits [1, vocabulary] behind tokens [1, n], which go into the cache."""
    output = model(input_ids=tokens, use_cache=True, **{cache_argument(model): cache}, **options)
    logits: torch.Tensor = output.logits[:, -1]
    return logits


def _rewind(cache: Any, length: int) -> None:
    """Has a cache of fixed size hold so many tokens. What is behind them is masked, and overwritten later."""
    for layer in cache.layers:
        layer.cumulative_length.fill_(length)


def cache_argument(model: Any) -> str:
    """Returns what a transformers model calls the argument for its key-value cache: it depends on the version."""
    new, old = _CACHES
    return new if new in inspect.signature(model.forward).parameters else old


def common_prefix(a: list[int], b: list[int]) -> int:
    """Returns how many tokens two lists have in common from the first on."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
