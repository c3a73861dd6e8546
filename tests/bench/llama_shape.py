"""Models of Llama's shape and any size, their weights made on the device: what bench_offload.py runs.

Names of modules are those of transformers' LlamaForCausalLM, which `--model transformers` takes instead. The plain one
launches fewer kernels, so that a host that is busy with Python does not hide what is measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tpde._draft_loop import cache_argument

STD = 0.02
ROW_SPREAD = 0.1
"""Of the logarithm of a row's standard deviation. Normal weights of such rows take 10.57 bits without a base and 7.04
beside an int4 base; those of trained models 10.57 and 7.02 (README, what `tpde inspect` prints)."""

HOW = f"weights are normal, std {STD} times exp({ROW_SPREAD} z) per row (o_proj, down_proj: / sqrt(2 layers)), in bf16"


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    repeat: int = 0
    """So many different layers follow each other again and again; 0: each is different."""
    clear: float = 0.0
    """How much lm_head prefers the successor of a token, in multiples of the largest of all other logits. Random ones
    choose between near ties, where no draft agrees; trained models do not. In SIZES it is so much that int4 agrees with
    bf16 on some 95% of tokens: the more layers add to what the embedding says of a token, the more it takes.
    `bench_offload.py --drafts int4` counts it."""

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    def modules(self) -> dict[str, tuple[int, int]]:
        """Shapes of the linear layers of a block."""
        kv = self.kv_heads * self.head
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Shapes of all weights that are matrices, by the name of their module."""
        blocks = {f"model.layers.{i}.{name}": size for i in range(self.layers) for name, size in self.modules().items()}
        end = (self.vocabulary, self.hidden)
        return {"model.embed_tokens": end, **blocks, "lm_head": end}

    @property
    def model_bytes(self) -> int:
        """Of all matrices in bf16; norms are nothing beside them."""
        return sum(2 * rows * columns for rows, columns in self.matrices().values())

    def same(self, name: str) -> str:
        """The name of the matrix that holds the same numbers: itself, unless layers are repeated."""
        parts = name.split(".")
        if self.repeat and len(parts) > 2 and parts[2].isdigit():
            parts[2] = str(int(parts[2]) % self.repeat)
        return ".".join(parts)


SIZES = {
    "tiny": Shape(hidden=64, layers=3, inner=160, heads=4, kv_heads=2, vocabulary=256, clear=1.15),
    "1b": Shape(hidden=2048, layers=16, inner=8192, heads=32, kv_heads=8, vocabulary=128256, clear=1.4),
    "8b": Shape(hidden=4096, layers=32, inner=14336, heads=32, kv_heads=8, vocabulary=128256, clear=3.5),
    "40b": Shape(hidden=8192, layers=45, inner=28672, heads=64, kv_heads=8, vocabulary=128256),
}


# ---- weights ----------------------------------------------------------------------


def matrix(shape: Shape, name: str, device: torch.device) -> Tensor:
    """Returns a weight, bf16. The same numbers whenever it is called on the same kind of device."""
    rows, columns = shape.matrices()[name]
    numbers = {name: i for i, name in enumerate(shape.matrices())}
    g = torch.Generator(device).manual_seed(numbers[shape.same(name)])
    std = STD / math.sqrt(2 * shape.layers) if name.endswith(("o_proj", "down_proj")) else STD
    scale = torch.randn(rows, 1, generator=g, device=device).mul_(ROW_SPREAD).exp_().mul_(std)
    out = torch.empty(rows, columns, dtype=torch.bfloat16, device=device)
    step = max((64 << 20) // columns, 1)  # float32 beside bf16 for a part of it only
    for first in range(0, rows, step):
        some = scale[first : first + step]
        torch.mul(torch.randn(len(some), columns, generator=g, device=device), some, out=out[first : first + step])
    if shape.clear and name == "model.embed_tokens":
        out /= STD  # else it is nothing beside what layers add to it
    if shape.clear and name == "lm_head":
        largest = STD * math.sqrt(2 * columns * math.log(rows))
        before = matrix(shape, "model.embed_tokens", device).roll(1, 0)
        out.add_(before, alpha=shape.clear * largest / columns)
    return out


# ---- the plain model ----------------------------------------------------------------


class Cache:
    """Keys and values of all layers, and the tables of rotary embeddings. Belongs to no module, so that nothing moves
    it about. batch 0 keeps no keys and values: each call is a prompt, and gradients flow."""

    def __init__(self, shape: Shape, capacity: int, device: torch.device, batch: int = 1) -> None:
        size = (shape.layers, batch, shape.kv_heads, capacity, shape.head)
        self.keeps = batch > 0
        self.keys, self.values = (torch.zeros(size, dtype=torch.bfloat16, device=device) for _ in range(2))
        inverse = 10000.0 ** (-torch.arange(0, shape.head, 2, device=device) / shape.head)
        angles = torch.arange(capacity, device=device)[:, None] * inverse.repeat(2)
        self.cos, self.sin = angles.cos().bfloat16(), angles.sin().bfloat16()
        self.length = 0
        self.position: Tensor | None = None

    def fix(self) -> None:
        """From now on each call is of one token, and how many there are is known on the device alone, so that a call
        can be captured in a CUDA graph. Attention looks at the whole capacity."""
        self.position = torch.tensor([self.length], device=self.keys.device)
        self._all = torch.arange(self.keys.shape[-2], device=self.keys.device)

    def angles(self, n: int) -> tuple[Tensor, Tensor]:
        """cos and sin [n, head] for the next n tokens."""
        if self.position is not None:
            return self.cos.index_select(0, self.position), self.sin.index_select(0, self.position)
        return self.cos[self.length : self.length + n], self.sin[self.length : self.length + n]

    def append(self, number: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values of a layer that the next tokens attend to, theirs included, and a mask if one is needed
        that is not causal."""
        if not self.keeps:
            return k, v, None
        keys, values = self.keys[number], self.values[number]
        if self.position is not None:
            keys.index_copy_(2, self.position, k), values.index_copy_(2, self.position, v)
            return keys, values, (self._all <= self.position)[None]
        begin, end = self.length, self.length + k.shape[2]
        keys[:, :, begin:end], values[:, :, begin:end] = k, v
        mask = None
        if begin and k.shape[2] > 1:  # several tokens behind others
            mask = torch.ones(k.shape[2], end, dtype=torch.bool, device=k.device).tril(begin)
        return keys[:, :, :end], values[:, :, :end], mask

    def advance(self, n: int) -> None:
        if self.position is not None:
            self.position += n
        elif self.keeps:
            self.length += n


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class RMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, 1e-6)


def linear(size: tuple[int, int]) -> nn.Linear:
    return nn.Linear(size[1], size[0], bias=False, dtype=torch.bfloat16)


class Attention(nn.Module):
    def __init__(self, shape: Shape, number: int) -> None:
        super().__init__()
        self.number, self.head = number, shape.head
        sizes = shape.modules()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (linear(sizes[f"self_attn.{n}_proj"]) for n in "qkvo")

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, self.head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        cos, sin = cache.angles(x.shape[1])
        k, v, mask = cache.append(self.number, rotated(k, cos, sin), v)
        attended = F.scaled_dot_product_attention(
            rotated(q, cos, sin), k, v, attn_mask=mask, is_causal=mask is None and x.shape[1] > 1, enable_gqa=True
        )
        out: Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        sizes = shape.modules()
        self.gate_proj, self.up_proj, self.down_proj = (linear(sizes[f"mlp.{n}_proj"]) for n in ("gate", "up", "down"))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)).mul_(self.up_proj(x)))
        return out


class Block(nn.Module):
    def __init__(self, shape: Shape, number: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(shape, number), MLP(shape)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(shape.hidden), RMSNorm(shape.hidden)

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cache)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Inner(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden, dtype=torch.bfloat16)
        self.layers = nn.ModuleList(Block(shape, i) for i in range(shape.layers))
        self.norm = RMSNorm(shape.hidden)

    def forward(self, ids: Tensor, cache: Cache) -> Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cache)
        cache.advance(ids.shape[1])
        out: Tensor = self.norm(x)
        return out


class Llama(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model = Inner(shape)
        self.lm_head = linear((shape.vocabulary, shape.hidden))

    def forward(self, ids: Tensor, cache: Cache) -> Tensor:
        out: Tensor = self.lm_head(self.model(ids, cache))
        return out


# ---- either model ------------------------------------------------------------------


def empty_model(shape: Shape, kind: str) -> nn.Module:
    """Returns a model whose matrices are on the meta device; its norms are on the CPU, ones, as in a new model."""
    with torch.device("meta"):
        if kind == "plain":
            model: nn.Module = Llama(shape)
        else:
            from transformers import LlamaForCausalLM

            model = LlamaForCausalLM(config(shape)).to(torch.bfloat16)
    model.requires_grad_(False).eval()
    for name, one in model.named_modules():
        if "norm" in name.rpartition(".")[2]:
            one.weight = nn.Parameter(torch.ones(shape.hidden, dtype=torch.bfloat16), requires_grad=False)
    if kind != "plain":
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        inner: Any = model.model
        inner.rotary_emb = LlamaRotaryEmbedding(config=config(shape))
    return model


def config(shape: Shape) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.inner,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        bos_token_id=None,  # no token ends a text
        eos_token_id=None,
    )


def put(model: nn.Module, name: str, weight: Tensor) -> None:
    """Gives the module of that name a weight."""
    model.get_submodule(name).weight = nn.Parameter(weight, requires_grad=False)


def filled(shape: Shape, kind: str, device: torch.device) -> nn.Module:
    """Returns a resident model."""
    model = empty_model(shape, kind)
    for name in shape.matrices():
        put(model, name, matrix(shape, name, device))
    return model.to(device)


class Runner:
    """Runs a model, token by token."""

    def __init__(self, model: nn.Module, shape: Shape, device: torch.device, capacity: int) -> None:
        self.model, self._plain = model, isinstance(model, Llama)
        if self._plain:
            self._cache: Any = Cache(shape, capacity, device)
        else:
            from transformers import DynamicCache

            self._cache = DynamicCache()

    def fix(self) -> None:
        """Has each call be of one token from now on, and good for a CUDA graph. For the plain model."""
        self._cache.fix()

    def __call__(self, ids: Tensor) -> Tensor:
        """Returns logits [1, ids.shape[1], vocabulary] of the tokens that follow those of all calls before."""
        if self._plain:
            out: Tensor = self.model(ids, self._cache)
        else:
            out = self.model(input_ids=ids, use_cache=True, **{cache_argument(self.model): self._cache}).logits
        return out


def prompt(shape: Shape, length: int, device: torch.device) -> Tensor:
    return torch.randint(0, shape.vocabulary, (1, length), generator=torch.Generator().manual_seed(1)).to(device)


@torch.no_grad()
def logits_layer_by_layer(shape: Shape, ids: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yields what each block returns for a prompt, then the logits, of the resident plain model, of which no more than
    a block is there at once. The last one is named "logits"."""
    device = ids.device
    cache = Cache(shape, ids.shape[1], device)
    x = F.embedding(ids, matrix(shape, "model.embed_tokens", device))
    for i in range(shape.layers):
        with torch.device("meta"):
            block = Block(shape, i)
        for name in ("input_layernorm", "post_attention_layernorm"):
            put(block, name, torch.ones(shape.hidden, dtype=torch.bfloat16, device=device))
        for name in shape.modules():
            put(block, name, matrix(shape, f"model.layers.{i}.{name}", device))
        x = block(x, cache)
        yield f"model.layers.{i}", x
    x = F.rms_norm(x, x.shape[-1:], torch.ones(shape.hidden, dtype=torch.bfloat16, device=device), 1e-6)
    yield "logits", F.linear(x, matrix(shape, "lm_head", device))
