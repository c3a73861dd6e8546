"""Products with quantised weights on the CPU: the operator, its arguments, its gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import tpde
import tpde.nn  # registers the operators
from quantised import LAYOUTS, layout
from support import assert_same_bits
from tpde import quant

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_is_the_product_with_the_dequantised_weight(name, dtype):
    x, q, bias = layout(name, 17, 96, 6, dtype, group=32, zero=True, bias=True)
    expected = F.linear(x, q.dequantize(), bias)
    assert_same_bits(tpde.quantised_linear(x, q, bias), expected)
    assert_same_bits(tpde.quantised_linear(x.view(2, 3, 96), q, bias), expected.view(2, 3, 17))
    assert_same_bits(tpde.quantised_linear(x[0], q), F.linear(x[0], q.dequantize()))


def test_the_weight_takes_the_dtype_of_x():
    x, q, _ = layout("int4", 5, 64, 2, torch.float32)
    weight = tpde.QuantizedTensor(q.packed, q.scale, None, 4, 64, q.shape, torch.bfloat16).dequantize()
    assert_same_bits(tpde.quantised_linear(x.bfloat16(), q), F.linear(x.bfloat16(), weight))


def test_what_does_not_fit_is_refused():
    x, q, bias = layout("int4", 5, 64, 2, torch.float32, bias=True)
    with pytest.raises(tpde.ArgumentError, match=r"got shape \[5, 64\] for x of shape \[2, 63\]"):
        tpde.quantised_linear(x[:, :63], q)
    with pytest.raises(tpde.ArgumentError, match=r"bias: expected .*float32"):
        tpde.quantised_linear(x, q, bias.half())
    with pytest.raises(tpde.ArgumentError, match=r"bias: expected .* of shape \[5\]"):
        tpde.quantised_linear(x, q, bias[:4])
    with pytest.raises(tpde.UnsupportedError, match="float64"):
        tpde.quantised_linear(x.double(), q)
    with pytest.raises(tpde.ArgumentError, match="packed: expected"):
        torch.ops.tpde.quantised_linear(x, q.packed[:-4], q.scale, None, None, "linear", 4, 64, 5, None)


def test_gradients():
    x, q, bias = layout("int3", 5, 128, 4, torch.float32, group=32, zero=True, bias=True)
    results = []
    for product in (tpde.quantised_linear, lambda x, q, bias: F.linear(x, q.dequantize(), bias)):
        inputs = [t.clone().requires_grad_() for t in (x, bias)]
        product(inputs[0], q, inputs[1]).pow(2).sum().backward()
        results.append([t.grad for t in inputs])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", ["int4", "nf4"])
def test_opcheck(name):
    x, q, bias = layout(name, 5, 64, 4, torch.float32, bias=True)
    parts = q.packed, q.scale, q.zero, q.code, q.kind, q.bits, q.group_size, 5
    torch.library.opcheck(torch.ops.tpde.quantised_linear, (x, *parts, bias))
    torch.library.opcheck(torch.ops.tpde.quantised_linear, (x.requires_grad_(), *parts, None))


def test_compile():
    x, q, bias = layout("int2", 5, 64, 4, torch.float32, bias=True)
    compiled = torch.compile(lambda x: tpde.quantised_linear(x, q, bias) * 2, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(x), tpde.quantised_linear(x, q, bias) * 2)
    assert compiled(x[:3]).shape == (3, 5)


def test_meta():
    x, q, _ = layout("int4", 5, 64, 4, torch.float32)
    meta = quant.QuantizedTensor(q.packed.to("meta"), q.scale.to("meta"), None, 4, 64, (5, 64), torch.float32)
    out = tpde.quantised_linear(x.to("meta"), meta)
    assert out.device.type == "meta" and out.shape == (4, 5)
