"""JITCompressedLinear against nn.Linear, on bits."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tpde
from support import assert_same_bits
from tpde.nn import JITCompressedLinear

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def make(bias=True, dtype=torch.float32, shape=(24, 40), seed=0, with_base=True):
    torch.manual_seed(seed)
    linear = nn.Linear(shape[1], shape[0], bias=bias, dtype=dtype)
    base = linear.weight.detach() * (1 + 1e-2 * torch.randn(shape, dtype=dtype)) if with_base else None
    return linear, JITCompressedLinear.from_linear(linear, base=base)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3)])
def test_output_and_gradients_equal_linear(dtype, bias, with_base, batch):
    linear, layer = make(bias, dtype, with_base=with_base)
    x = torch.randn(*batch, 40, dtype=dtype)
    with torch.no_grad():
        assert_same_bits(layer(x), linear(x))
    with torch.inference_mode():
        assert_same_bits(layer(x), linear(x))
    results = []
    for module in (linear, layer):
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        out.square().sum().backward()
        results.append((out.detach(), leaf.grad, None if module.bias is None else module.bias.grad.clone()))
    assert_same_bits(results[1][0], results[0][0])
    assert_same_bits(results[1][1], results[0][1])
    if bias:
        assert_same_bits(results[1][2], results[0][2])


def test_bias_learns_without_input_gradients():
    _, layer = make()
    x = torch.randn(3, 40)
    layer(x).sum().backward()
    assert_same_bits(layer.bias.grad, torch.full((24,), 3.0))


def test_autocast_equals_linear():
    linear, layer = make()
    x = torch.randn(4, 40)
    grads = []
    for module in (linear, layer):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = module(leaf)
        assert out.dtype is torch.bfloat16
        out.float().sum().backward()
        grads.append(leaf.grad)
    assert_same_bits(grads[1], grads[0])


def test_backward_keeps_no_weight():
    _, layer = make()
    x = torch.randn(3, 40, requires_grad=True)
    out = layer(x)
    stored = {layer.base.data_ptr(), layer.index_map.data_ptr(), layer.data_blob.data_ptr()}
    assert {t.data_ptr() for t in out.grad_fn.saved_tensors if t is not None} <= stored


def test_is_a_linear():
    linear, layer = make()
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features) == (40, 24)
    assert (layer.weight.shape, layer.weight.dtype, layer.weight.device.type) == ((24, 40), torch.float32, "cpu")
    assert_same_bits(layer.weight, linear.weight)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert sorted(name for name, _ in layer.named_buffers()) == ["base", "data_blob", "index_map"]
    assert layer.bias is linear.bias
    assert "in_features=40" in repr(layer)
    assert_same_bits(layer.to_linear().weight, linear.weight)


@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_into_a_fresh_module(bias):
    linear, layer = make(bias, seed=1)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    for assign in (False, True):
        _, fresh = make(bias, seed=2)
        old_base = fresh.base.clone()
        shared = fresh.base
        assert fresh.data_blob.numel() != layer.data_blob.numel() or not torch.equal(fresh.data_blob, layer.data_blob)
        fresh.load_state_dict(state, strict=True, assign=assign)
        assert_same_bits(fresh.weight, linear.weight)
        x = torch.randn(2, 40)
        assert_same_bits(fresh(x), linear(x))
        assert_same_bits(shared, old_base)  # a base that other layers share is not written to


def test_state_dict_of_a_blob_of_another_size_inside_a_model():
    _, dense = make(seed=3)
    sparse_linear = nn.Linear(40, 24)
    base = sparse_linear.weight.detach().clone()
    base[0, 0] += 1
    model = nn.Sequential(JITCompressedLinear.from_linear(sparse_linear, base=base))
    fresh = nn.Sequential(dense)
    fresh.load_state_dict(model.state_dict())
    assert_same_bits(fresh[0].weight, sparse_linear.weight)


def test_state_dict_with_and_without_base():
    linear, without = make(with_base=False)
    _, layer = make(seed=4)
    layer.load_state_dict(without.state_dict())
    assert layer.base is None
    assert_same_bits(layer.weight, linear.weight)
    other, with_base = make(seed=5)
    layer.load_state_dict(with_base.state_dict())
    assert_same_bits(layer.weight, other.weight)


def test_swap_the_delta_and_keep_the_base():
    base = torch.randn(24, 40)
    linears = [nn.Linear(40, 24) for _ in range(2)]
    layers = [JITCompressedLinear.from_linear(linear, base=base) for linear in linears]
    state = {name: t for name, t in layers[1].state_dict().items() if name != "base"}
    result = layers[0].load_state_dict(state, strict=False)
    assert result.missing_keys == ["base"]
    assert_same_bits(layers[0].weight, linears[1].weight)


def test_damage_is_found_when_a_state_dict_is_loaded():
    linear, layer = make()
    for name, error in (("base", tpde.BaseMismatchError), ("data_blob", tpde.TpdeError), ("index_map", tpde.TpdeError)):
        state = {key: t.clone() for key, t in layer.state_dict().items()}
        flat = state[name].view(torch.uint8).view(-1)
        flat[flat.numel() // 2] ^= 4
        with pytest.raises(error):
            layer.load_state_dict(state)
        assert_same_bits(layer.weight, linear.weight)


def test_wrong_shape_and_missing_keys():
    _, layer = make()
    _, other = make(shape=(8, 40))
    with pytest.raises(tpde.ArgumentError, match="shape"):
        layer.load_state_dict(other.state_dict())
    with pytest.raises(RuntimeError, match="index_map"):
        layer.load_state_dict({"bias": torch.zeros(24)})
    with pytest.raises(RuntimeError, match="surprise"):
        layer.load_state_dict({**layer.state_dict(), "surprise": torch.zeros(1)})


def test_copies():
    linear, layer = make()
    x = torch.randn(2, 40)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)):
        assert twin.base.data_ptr() != layer.base.data_ptr()
        assert twin.bias is not layer.bias
        assert_same_bits(twin(x), linear(x))


@pytest.mark.parametrize(
    "convert",
    [
        lambda m: m.half(),
        lambda m: m.double(),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.float16),
        lambda m: m.to("cpu", torch.float64),
        lambda m: m.type(torch.float64),
        lambda m: nn.Sequential(m).half(),
    ],
)
def test_dtype_conversions_are_refused(convert):
    linear, layer = make()
    with pytest.raises(TypeError, match="to_linear"):
        convert(layer)
    assert layer.bias.dtype is torch.float32
    assert_same_bits(layer.weight, linear.weight)


def test_moves_that_change_nothing_work():
    linear, layer = make()
    for same in (layer.cpu(), layer.float(), layer.to("cpu"), layer.to(torch.float32), layer.train(), layer.eval()):
        assert same is layer
        assert_same_bits(layer.weight, linear.weight)
        assert layer.data_blob.dtype is torch.uint8


def test_meta_device_does_not_touch_bits():
    _, layer = make()
    moved = copy.deepcopy(layer).to("meta")
    assert moved.base.is_meta and moved.bias.is_meta
    assert moved.weight.shape == (24, 40)


@pytest.mark.parametrize("bias", [True, False])
def test_compile_without_graph_breaks(bias):
    linear, layer = make(bias)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 40)
    with torch.no_grad():
        assert_same_bits(compiled(x), linear(x))
    leaf, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
    compiled(leaf).sum().backward()
    linear(reference).sum().backward()
    assert_same_bits(leaf.grad, reference.grad)


def test_checkpointed_training_through_it():
    linear, layer = make()
    x = torch.randn(3, 40, requires_grad=True)
    torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).sum().backward()
    got = x.grad.clone()
    x.grad = None
    linear(x).sum().backward()
    assert_same_bits(got, x.grad)


def test_double_backward():
    _, layer = make(dtype=torch.float64)
    x = torch.randn(2, 40, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x).pow(2), (x,))


def test_from_files(tmp_path):
    linear, layer = make()
    paths = layer.save(tmp_path / "fc")
    assert [p.name for p in paths] == ["fc.base.safetensors", "fc.tpde-index", "fc.tpde-blob"]
    with pytest.raises(tpde.ExistsError):
        layer.save(tmp_path / "fc")
    layer.save(tmp_path / "fc", overwrite=True)
    x = torch.randn(2, 40)
    from_files = JITCompressedLinear((24, 40), *paths, bias=linear.bias.detach())
    assert_same_bits(from_files(x), linear(x))
    save_file({"a": layer.base, "b": torch.zeros(1)}, tmp_path / "two.safetensors")
    torch.save(layer.base, tmp_path / "base.pt")
    torch.save({"weight": layer.base}, tmp_path / "dict.pt")
    for base in (f"{tmp_path}/two.safetensors::a", tmp_path / "base.pt", tmp_path / "dict.pt"):
        assert_same_bits(JITCompressedLinear((24, 40), base, *paths[1:]).weight, linear.weight)
    _, without = make(with_base=False)
    base_path, *paths = without.save(tmp_path / "nobase")
    assert base_path is None
    assert_same_bits(JITCompressedLinear((24, 40), None, *paths).weight, linear.weight)


def test_bad_files(tmp_path):
    _, layer = make()
    base, index, blob = layer.save(tmp_path / "fc")
    save_file({"a": layer.base, "b": layer.base.clone()}, tmp_path / "two.safetensors")
    with pytest.raises(tpde.ArgumentError, match="::name"):
        JITCompressedLinear((24, 40), tmp_path / "two.safetensors", index, blob)
    with pytest.raises(tpde.NotFoundError, match="'c'"):
        JITCompressedLinear((24, 40), f"{tmp_path}/two.safetensors::c", index, blob)
    with pytest.raises(tpde.NotFoundError):
        JITCompressedLinear((24, 40), tmp_path / "none.safetensors", index, blob)
    with pytest.raises(tpde.NotFoundError):
        JITCompressedLinear((24, 40), base, tmp_path / "none", blob)
    with pytest.raises(tpde.ArgumentError, match="output_shape"):
        JITCompressedLinear((40, 24), base, index, blob)
    with pytest.raises(tpde.ArgumentError, match="output_shape"):
        JITCompressedLinear((960,), base, index, blob)
    with pytest.raises(tpde.ArgumentError, match="bias"):
        JITCompressedLinear((24, 40), base, index, blob, bias=torch.zeros(3))
    damaged = bytearray(blob.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    blob.write_bytes(damaged)
    with pytest.raises(tpde.TpdeError):
        JITCompressedLinear((24, 40), base, index, blob)


def test_from_linear_checks_its_arguments():
    linear = nn.Linear(4, 3)
    with pytest.raises(tpde.ArgumentError, match=r"nn.Linear"):
        JITCompressedLinear.from_linear(nn.Conv1d(1, 1, 1))
    with pytest.raises(tpde.ArgumentError, match="base"):
        JITCompressedLinear.from_linear(linear, base=torch.zeros(4, 3))


def test_functional_transforms():
    linear = torch.nn.Linear(24, 16)
    layer = JITCompressedLinear.from_linear(linear, linear.weight.detach() + 1)
    x = torch.randn(5, 24)
    for transform in (torch.func.grad, lambda f: torch.vmap(torch.func.grad(f))):
        got, expected = (transform(lambda row, m=module: m(row).square().sum())(x) for module in (layer, linear))
        assert torch.equal(got, expected)
