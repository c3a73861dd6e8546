"""Quantised bases in encode, reconstruct and JITCompressedLinear, on the CPU and through the stand-in for a GPU.

What a quantised base is worth is the business of test_quant.py; here its values are taken for granted.
"""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tpde
from support import assert_same_bits
from tpde import _cuda, _cuda_base, _cuda_rebuild, _ops, quant
from tpde.nn import JITCompressedLinear

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def bases(dtype=torch.bfloat16, shape=(24, 40), seed=0):
    """A weight, and every kind of quantised base for it."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=g).to(dtype)
    for bits in (2, 3, 4, 8):
        for symmetric in (True, False):
            yield weight, tpde.quantize(weight, bits, 32, symmetric)
    yield weight, tpde.quantize(weight, 4, (1 << 64) - 1, scale_dtype=torch.float32)
    n = weight.numel()
    codes = torch.randint(0, 256, (n // 2,), generator=g, dtype=torch.uint8)
    yield weight, quant.from_bitsandbytes_nf4(codes, torch.rand(n // 64, generator=g), None, 64, shape, dtype)
    rows = torch.randint(-127, 128, shape, generator=g, dtype=torch.int8)
    yield weight, quant.from_bitsandbytes_int8(rows, torch.rand(shape[0], generator=g), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("codec", ["elias", "raw", "zstd"])
def test_round_trip(dtype, codec):
    for weight, base in bases(dtype):
        index_map, data_blob = tpde.encode(base, weight, codec=codec)
        twin = tpde.encode(base.dequantize(), weight, codec=codec)
        assert_same_bits(index_map, twin[0])  # the residual to what the codes stand for, and nothing else
        assert_same_bits(data_blob, twin[1])
        assert_same_bits(tpde.reconstruct(base, index_map, data_blob), weight)
        out = torch.empty_like(weight)
        assert tpde.reconstruct(base, index_map, data_blob, out=out, workers=1) is out
        assert_same_bits(out, weight)
        assert_same_bits(tpde.reconstruct(base.dequantize(), index_map, data_blob), weight)


def test_add_residual_on_the_cpu():
    for weight, base in bases():
        index_map, data_blob = tpde.encode(base, weight, residual="add")
        assert_same_bits(tpde.reconstruct(base, index_map, data_blob), weight)


def test_refusals():
    weight, base = next(bases())
    index_map, data_blob = tpde.encode(base, weight)
    with pytest.raises(tpde.BaseMismatchError):
        tpde.reconstruct(tpde.quantize(weight, 3), index_map, data_blob)
    with pytest.raises(tpde.ArgumentError, match=r"base: expected torch.bfloat16 .*got torch.float16"):
        tpde.reconstruct(tpde.quantize(weight.half(), 2), index_map, data_blob)
    with pytest.raises(tpde.ArgumentError, match="shape"):
        tpde.reconstruct(replace(base, shape=(40, 24)), index_map, data_blob)
    with pytest.raises(tpde.ArgumentError, match="base: expected None"):
        tpde.reconstruct(base, *tpde.encode(None, weight))
    with pytest.raises(tpde.ArgumentError, match="base: expected"):
        tpde.encode(base, weight.float())


def test_operator():
    for weight, base in bases():
        index_map, data_blob = tpde.encode(base, weight)
        group = min(base.group_size, quant.MAX_GROUP)
        pieces = (base.packed, base.scale, base.zero, base.code, base.kind, base.bits, group)
        arguments = (*pieces, index_map, data_blob, list(weight.shape), weight.dtype)
        torch.library.opcheck(torch.ops.tpde.reconstruct_quantized, arguments)
        assert_same_bits(_ops.reconstruct_quantized(*arguments), weight)
    with pytest.raises(tpde.ArgumentError, match="scale"):
        _ops.reconstruct_quantized(
            base.packed, base.scale[:-1], None, base.code, base.kind, base.bits, base.group_size, *arguments[7:]
        )


# ---- the layer -----------------------------------------------------------------


def layers(dtype=torch.bfloat16):
    for weight, base in bases(dtype):
        linear = nn.Linear(40, 24, dtype=dtype)
        linear.weight.data.copy_(weight)
        yield linear, JITCompressedLinear.from_linear(linear, base=base)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layer_equals_linear(dtype):
    for linear, layer in layers(dtype):
        assert layer.base is None and layer.quantized_base is not None
        assert_same_bits(layer.weight, linear.weight)
        x = torch.randn(3, 40).to(dtype)
        leaf, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
        out, expected = layer(leaf), linear(reference)
        assert_same_bits(out, expected)
        out.sum().backward()
        expected.sum().backward()
        assert_same_bits(leaf.grad, reference.grad)
        assert "bits in groups of" in repr(layer)


def test_layer_copies():
    for linear, layer in layers():
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert twin.base_packed.data_ptr() != layer.base_packed.data_ptr()
            assert_same_bits(twin.weight, linear.weight)


@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_into_any_other_layer(assign):
    """From every kind of base to every other one, and to a plain base and back."""
    every = list(layers())
    plain = nn.Linear(40, 24, dtype=torch.bfloat16)
    every.append((plain, JITCompressedLinear.from_linear(plain, base=plain.weight.detach() + 1)))
    every.append((plain, JITCompressedLinear.from_linear(plain)))
    for linear, layer in every:
        buffer = io.BytesIO()
        torch.save(layer.state_dict(), buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
        for _, other in every:
            fresh = copy.deepcopy(other)
            fresh.load_state_dict(state, strict=True, assign=assign)
            assert_same_bits(fresh.weight, linear.weight)
            assert sorted(fresh.state_dict()) == sorted(state)


def test_state_dict_as_safetensors(tmp_path):
    for linear, layer in layers():
        save_file(layer.state_dict(), tmp_path / "layer.safetensors")
        _, fresh = next(layers())
        fresh.load_state_dict(load_file(tmp_path / "layer.safetensors"))
        assert_same_bits(fresh.weight, linear.weight)


def test_swap_the_delta_and_keep_the_base():
    weight, base = next(bases())
    linears = [nn.Linear(40, 24, dtype=weight.dtype) for _ in range(2)]
    first, second = (JITCompressedLinear.from_linear(linear, base=base) for linear in linears)
    state = {name: t for name, t in second.state_dict().items() if not name.startswith("base")}
    result = first.load_state_dict(state, strict=False)
    assert result.missing_keys == ["base_packed", "base_scale", "base_scheme"]
    assert_same_bits(first.weight, linears[1].weight)


def test_damage_is_found_when_a_state_dict_is_loaded():
    linear, layer = next(layers())
    for name in ("base_packed", "base_scale", "base_scheme"):
        state = {key: t.clone() for key, t in layer.state_dict().items()}
        state[name].view(torch.uint8)[0] ^= 1
        with pytest.raises(tpde.TpdeError):
            layer.load_state_dict(state)
        assert_same_bits(layer.weight, linear.weight)
    with pytest.raises(tpde.ArgumentError, match="base_scheme: expected base_packed"):
        layer.load_state_dict({k: t for k, t in layer.state_dict().items() if k != "base_packed"})


def test_conversions_leave_the_base_alone():
    """.to(dtype of the weight) must not round scales or a code book."""
    for linear, layer in layers():
        for same in (layer.bfloat16(), layer.to(torch.bfloat16), layer.to("cpu")):
            assert same.quantized_base.scale.dtype is layer.base_scale.dtype
            assert_same_bits(same.weight, linear.weight)
        with pytest.raises(TypeError, match="to_linear"):
            layer.half()
        assert layer.to("meta").base_scale.is_meta


def test_layer_files(tmp_path):
    for i, (linear, layer) in enumerate(layers()):
        paths = layer.save(tmp_path / f"fc{i}")
        with pytest.raises(tpde.ExistsError):
            layer.save(tmp_path / f"fc{i}")
        layer.save(tmp_path / f"fc{i}", overwrite=True)
        read = JITCompressedLinear((24, 40), *paths, bias=linear.bias.detach())
        assert_same_bits(read.weight, linear.weight)
        assert read.quantized_base.kind == layer.quantized_base.kind
    for scheme, error in (("[]", tpde.CorruptError), ("{", tpde.CorruptError), ('{"kind": 4}', tpde.CorruptError)):
        save_file({"packed": layer.base_packed, "scale": layer.base_scale}, paths[0], {"tpde.quantized": scheme})
        with pytest.raises(error, match="quantized"):
            JITCompressedLinear((24, 40), *paths)
    save_file({"packed": layer.base_packed}, paths[0], {"tpde.quantized": "{}"})
    with pytest.raises(tpde.CorruptError, match="packed and scale"):
        JITCompressedLinear((24, 40), *paths)


def test_layer_compiles():
    for linear, layer in layers(torch.float32):
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        x = torch.randn(3, 40)
        with torch.no_grad():
            assert_same_bits(compiled(x), linear(x))
        leaf, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
        compiled(leaf).sum().backward()
        linear(reference).sum().backward()
        assert_same_bits(leaf.grad, reference.grad)
        torch._dynamo.reset()


# ---- what stands between torch and a kernel --------------------------------------


@pytest.mark.parametrize("codec", ["elias", "raw"])
def test_kernels_are_given_a_descriptor(gpu, codec):
    for dtype in DTYPES:
        for weight, base in bases(dtype):
            index_map, data_blob = tpde.encode(base, weight, codec=codec)
            for _ in range(3):
                assert_same_bits(_cuda_rebuild.reconstruct(base, index_map, data_blob, True), weight)
            out = torch.empty_like(weight)
            _cuda_rebuild.reconstruct(base, index_map, data_blob, False, out)
            assert_same_bits(out, weight)
            _cuda_rebuild.check_base(base, index_map, data_blob)
    assert len(_cuda_base._descriptors) <= 256
    _cuda.synchronize(torch.device("cpu"))


def test_a_descriptor_is_made_once(gpu):
    weight, base = next(bases())
    index_map, data_blob = tpde.encode(base, weight, codec="raw")
    _cuda_rebuild.reconstruct(base, index_map, data_blob, False)
    (made,) = _cuda_base._descriptors.values()
    gpu.capturing = True
    _cuda_rebuild.reconstruct(copy.copy(base), index_map, data_blob, False)  # another object, the same parts
    assert list(_cuda_base._descriptors.values()) == [made]
    with pytest.raises(tpde.UnsupportedError, match=r"quantised base .*once before the capture"):
        _cuda_rebuild.reconstruct(copy.deepcopy(base), index_map, data_blob, False)


def test_a_descriptor_follows_its_code_book(gpu):
    weight, base = next((w, b) for w, b in bases() if b.code is not None)
    index_map, data_blob = tpde.encode(base, weight, codec="raw")
    assert_same_bits(_cuda_rebuild.reconstruct(base, index_map, data_blob, False), weight)
    base.code.mul_(2)
    other = tpde.encode(base, weight, codec="raw")
    assert_same_bits(_cuda_rebuild.reconstruct(base, *other, False), weight)


def test_descriptors_go_with_their_parts(gpu):
    weight, base = next(bases())
    index_map, data_blob = tpde.encode(base, weight, codec="raw")
    for _ in range(600):
        moved = replace(base, packed=base.packed.clone(), scale=base.scale.clone())
        assert_same_bits(_cuda_rebuild.reconstruct(moved, index_map, data_blob, False), weight)
    assert len(_cuda_base._descriptors) <= 256


def test_kernels_are_given_fitting_bases_alone(gpu):
    weight, base = next(bases())
    index_map, data_blob = tpde.encode(base, weight, codec="raw")
    for wrong, message in (
        (tpde.quantize(weight.half(), 2), "base: expected torch.bfloat16"),
        (replace(base, shape=(40, 24)), "base: expected"),
    ):
        with pytest.raises(tpde.ArgumentError, match=message):
            _cuda_rebuild.reconstruct(wrong, index_map, data_blob, False)
    with pytest.raises(tpde.BaseMismatchError):
        _cuda_rebuild.check_base(tpde.quantize(weight, 2, 64), index_map, data_blob)
    arena = torch.zeros(8192, dtype=torch.uint8)
    inside = replace(base, packed=arena[64:][: base.packed.numel()].copy_(base.packed))
    out = arena[: weight.numel() * 2].view(weight.dtype).view(weight.shape)
    with pytest.raises(tpde.ArgumentError, match="shares memory with"):
        _cuda_rebuild.reconstruct(inside, index_map, data_blob, False, out)


def test_many_with_every_kind_of_base(gpu):
    items, targets = [], []
    for weight, base in bases():
        for b in (base, weight + 1, None):
            items.append((b, *tpde.encode(b, weight, codec="raw")))
            targets.append(weight)
    for got, target in zip(_cuda_rebuild.reconstruct_many(items, True, None), targets, strict=True):
        assert_same_bits(got, target)
    assert gpu.calls == [("verify", len(items)), ("reconstruct", len(items))]
