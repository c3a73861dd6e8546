"""unpack on a CUDA device: the same tensors and the same files as on the CPU."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import bnb_fixture
import tpde
from gpu_support import CODECS, DTYPES, NEEDS_GPU, changed
from support import assert_same_bits, assert_same_tensors, random_bits, small_checkpoints, tree
from tpde import _deltas, _gpu_unpack
from tpde._sources import open_compressed_base, open_source

HERE = torch.device("cpu")


def to_tensors(base, *deltas):
    """As unpack(..., device=...), through the stand-in for a GPU."""
    with open_source(base, "base") as source, _deltas.as_paths(deltas) as paths:
        return _gpu_unpack.to_tensors(source.handle, paths, HERE, 0, False)


def to_files(base, *deltas, out):
    with open_source(base, "base") as source, _deltas.as_paths(deltas) as paths:
        options = {"workers": 0, "overwrite": False}
        return _gpu_unpack.to_files(source.handle, paths, str(out), options, HERE, False)


def chain(folder: Path, steps: int = 3, codec: str = "elias") -> list[Path]:
    """Folders 0 to steps with sharded checkpoints that have everything in them, and the deltas between them."""
    base, target = small_checkpoints()
    deltas = []
    for step in range(steps + 1):
        at = folder / str(step)
        at.mkdir(parents=True)
        state = {**(base if step == 0 else target)}
        if step > 1:
            state["changed.weight"] = state["changed.weight"].clone()
            state["changed.weight"].view(-1)[step::30] += step
            state["dense.weight"] = state["dense.weight"] * (1 + 1e-4 * step)
        if step:
            state["tied.weight"] = state["changed.weight"].clone()
        names = sorted(state)
        save_file({n: state[n] for n in names[::2]}, at / "one.safetensors", metadata={"format": "pt"})
        save_file({n: state[n] for n in names[1::2]}, at / "two.safetensors")
        (at / "config.json").write_text(f'{{"step": {step}}}')
        if step:
            deltas.append(folder / f"d{step}.safetensors")
            tpde.pack(folder / str(step - 1), at, deltas[-1], codec=codec, chunk_bytes=2048)
    return deltas


@pytest.fixture
def small(monkeypatch):
    """Windows, buffers, batches and groups so small that all of them are filled many times."""
    for name, size in (("WINDOW_BYTES", 4096), ("_BUFFER_BYTES", 700), ("_BATCH_BYTES", 3000), ("_GROUP_BYTES", 9000)):
        monkeypatch.setattr(_gpu_unpack, name, size)


# ---- through the stand-in for a GPU -------------------------------------------------


@pytest.mark.parametrize("codec", ["elias", "raw"])
def test_tensors_are_those_of_the_cpu(gpu, small, tmp_path, codec):
    deltas = chain(tmp_path, codec=codec)
    for n in range(1, 4):
        expected = tpde.unpack(tmp_path / "0", *deltas[:n])
        got = to_tensors(tmp_path / "0", *deltas[:n])
        assert list(got) == list(expected)
        assert_same_tensors(got, expected)
    assert got["tied.weight"].data_ptr() != got["changed.weight"].data_ptr()
    assert gpu.index == {}  # nothing stays prepared


@pytest.mark.parametrize("codec", ["elias", "raw"])
def test_files_are_those_of_the_cpu(gpu, small, tmp_path, codec):
    deltas = chain(tmp_path, codec=codec)
    for n in range(1, 4):
        report = to_files(tmp_path / "0", *deltas[:n], out=tmp_path / f"out{n}")
        assert tree(tmp_path / f"out{n}") == tree(tmp_path / str(n))
        expected = tpde.unpack(tmp_path / "0", *deltas[:n], out=tmp_path / f"cpu{n}")
        assert [f["sha256"] for f in report["files"]] == [f.sha256 for f in expected.files]
    assert ("verify", 1) in gpu.calls


def test_many_tensors_share_a_launch(gpu, tmp_path):
    deltas = chain(tmp_path)
    gpu.calls.clear()
    to_tensors(tmp_path / "0", *deltas)
    launches = [n for name, n in gpu.calls if name == "reconstruct"]
    assert launches == [2, 2, 2]  # as many as the chain has links


def test_dicts(gpu):
    base, target = small_checkpoints()
    delta = tpde.pack(base, target, codec="raw")
    assert_same_tensors(to_tensors(base, delta), target)
    assert_same_tensors(to_tensors(None, tpde.pack(None, target, codec="raw")), target)


def test_every_dtype(gpu):
    base = {str(dtype): random_bits(dtype, (6, 64)) for dtype in DTYPES}
    target = {name: changed(tensor, 0.2) for name, tensor in base.items()}
    assert_same_tensors(to_tensors(base, tpde.pack(base, target, codec="raw")), target)


def matrices(dtype=torch.bfloat16) -> dict[str, torch.Tensor]:
    """What quantisation gives a base, and what not."""
    g = torch.Generator().manual_seed(1)
    shapes = {"a.weight": (129, 131), "b.weight": (128, 192), "norm.weight": (70,), "c.weight": (64, 16, 20)}
    state = {name: (0.02 * torch.randn(*shape, generator=g)).to(dtype) for name, shape in shapes.items()}
    return state | {"a2.weight": state["a.weight"].clone(), "b.bias": torch.randn(128, generator=g).half()}


def bitsandbytes(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    """A base as bitsandbytes writes it: double-quantised NF4 and int8."""
    parts, _ = bnb_fixture.nf4("a.weight", state["a.weight"], True)
    parts |= bnb_fixture.nf4("a2.weight", state["a2.weight"], False)[0]
    parts |= bnb_fixture.int8("b", state["b.weight"])
    folder.mkdir()
    save_file(parts | {"norm.weight": state["norm.weight"]}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("base", ["int2", "int3", "int8", "none", "bitsandbytes"])
def test_compressed_models(gpu, small, tmp_path, base):
    state = matrices()
    folder = bitsandbytes(tmp_path / "bnb", state) if base == "bitsandbytes" else base
    save_file(state, tmp_path / "model.safetensors")
    tpde.compress(tmp_path / "model.safetensors", tmp_path / "packed", base=folder, codec="elias", progress=False)
    changed = {name: tensor + 1 if name == "b.weight" else tensor for name, tensor in state.items()}
    delta = tpde.pack(state, changed, codec="raw")
    with open_compressed_base(tmp_path / "packed") as source, _deltas.as_paths([delta]) as paths:
        first = str(tmp_path / "packed" / "residual.safetensors")
        for deltas, expected in (([first], state), ([first, *paths], changed)):
            got = _gpu_unpack.to_tensors(source.handle, deltas, HERE, 0, False)
            assert_same_tensors(got, expected)
        options = {"workers": 0, "overwrite": False}
        _gpu_unpack.to_files(source.handle, [first], str(tmp_path / "out.safetensors"), options, HERE, False)
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_a_wrong_base_is_refused(gpu, tmp_path):
    deltas = chain(tmp_path)
    for call in (
        lambda: to_tensors(tmp_path / "1", deltas[2]),
        lambda: to_files(tmp_path / "1", deltas[2], out=tmp_path / "out"),
    ):
        with pytest.raises(tpde.BaseMismatchError, match=r'tensor "\w+\.weight": base mismatch: the base has'):
            call()
    assert not (tmp_path / "out").exists()
    assert gpu.index == {}


def damaged(delta: Path, name: str) -> Path:
    """A copy of a delta with a flipped bit in the blob of a tensor."""
    tensors = load_file(delta)
    data = bytearray(delta.read_bytes())
    blob = tensors[f"{name}.tpde_blob"].numpy().tobytes()
    at = data.rindex(blob)
    data[at + len(blob) // 2] ^= 16
    out = delta.with_name("damaged.safetensors")
    out.write_bytes(data)
    return out


def test_damage_is_named(gpu, tmp_path):
    deltas = chain(tmp_path)
    bad = damaged(deltas[0], "dense.weight")
    pattern = re.escape(f'{bad}: tensor "dense.weight": chunk 1: its data ')
    for call in (
        lambda: to_tensors(tmp_path / "0", bad, *deltas[1:]),
        lambda: to_files(tmp_path / "0", bad, *deltas[1:], out=tmp_path / "out"),
    ):
        with pytest.raises((tpde.ChecksumError, tpde.CorruptError), match=pattern):
            call()
    assert not list(tmp_path.glob("out*"))
    assert gpu.index == {}


def test_an_output_that_exists_is_refused_before_anything_is_rebuilt(gpu, tmp_path):
    deltas = chain(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()
    with pytest.raises(tpde.ExistsError):
        to_files(tmp_path / "0", *deltas, out=tmp_path / "out")


def test_a_codec_that_the_gpu_lacks_names_the_tensor(gpu, monkeypatch, tmp_path):
    deltas = chain(tmp_path)

    def prepare(address, size):
        raise tpde.UnsupportedError("unsupported: codec rice")

    monkeypatch.setattr(gpu, "prepare", prepare)
    with pytest.raises(tpde.UnsupportedError, match=r'tensor "\S+": unsupported: codec rice'):
        to_tensors(tmp_path / "0", *deltas)


def test_an_interrupt_leaves_nothing(gpu, monkeypatch, tmp_path):
    deltas = chain(tmp_path)

    def interrupt(items, stream):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "gpu_verify", interrupt)
    with pytest.raises(KeyboardInterrupt):
        to_files(tmp_path / "0", *deltas, out=tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
    assert gpu.index == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_nothing_falls_back(tmp_path, tpde_cli):
    base, target = small_checkpoints()
    delta = tpde.pack(base, target)
    with pytest.raises(tpde.UnsupportedError, match="needs a GPU"):
        tpde.unpack(base, delta, device="cuda")
    with pytest.raises(tpde.UnsupportedError, match="needs a GPU"):
        tpde.unpack(base, delta, out=tmp_path / "out", device="cuda:0")
    assert_same_tensors(tpde.unpack(base, delta, device="cpu"), target)
    deltas = chain(tmp_path)
    result = tpde_cli("unpack", "--device", "cuda", tmp_path / "0", deltas[0], tmp_path / "out")
    assert result.returncode != 0 and "needs a GPU" in result.stderr


# ---- on a GPU ---------------------------------------------------------------------------


class TestOnGPU:
    pytestmark = NEEDS_GPU

    @pytest.mark.parametrize("codec", CODECS)
    @pytest.mark.parametrize("sizes", ["usual", "small"])
    def test_same_as_the_cpu(self, tmp_path, codec, sizes, request):
        if sizes == "small":
            request.getfixturevalue("small")
        deltas = chain(tmp_path, codec=codec)
        for n in range(1, 4):
            got = tpde.unpack(tmp_path / "0", *deltas[:n], device="cuda")
            assert all(tensor.is_cuda for tensor in got.values())
            expected = tpde.unpack(tmp_path / "0", *deltas[:n])
            assert list(got) == list(expected)
            assert_same_tensors({name: tensor.cpu() for name, tensor in got.items()}, expected)
            tpde.unpack(tmp_path / "0", *deltas[:n], out=tmp_path / f"out{n}", device="cuda")
            assert tree(tmp_path / f"out{n}") == tree(tmp_path / str(n))

    @pytest.mark.parametrize("base", ["int2", "int3", "int4", "int8", "none", "bitsandbytes"])
    def test_compressed_models(self, tmp_path, base):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            folder = tmp_path / str(dtype)
            folder.mkdir()
            state = matrices(dtype)
            made = bitsandbytes(folder / "bnb", state) if base == "bitsandbytes" else base
            save_file(state, folder / "model.safetensors")
            tpde.compress(folder / "model.safetensors", folder / "packed", base=made, progress=False)
            got = tpde.unpack(folder / "packed", device="cuda")
            assert all(tensor.is_cuda for tensor in got.values())
            assert_same_tensors({name: tensor.cpu() for name, tensor in got.items()}, state)
            tpde.unpack(folder / "packed", folder / "out.safetensors", device="cuda")
            assert (folder / "out.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()

    def test_every_dtype(self):
        base = {str(dtype): random_bits(dtype, (33, 1024)) for dtype in DTYPES}
        target = {name: changed(tensor, 0.2) for name, tensor in base.items()}
        for codec in CODECS:
            got = tpde.unpack(base, tpde.pack(base, target, codec=codec), device="cuda")
            assert_same_tensors({name: tensor.cpu() for name, tensor in got.items()}, target)

    @pytest.mark.parametrize("codec", CODECS)
    def test_more_than_the_windows_hold(self, codec, monkeypatch):
        """Tensors of many windows, over and over: copies must neither overtake launches nor be overtaken."""
        monkeypatch.setattr(_gpu_unpack, "WINDOW_BYTES", 1 << 20)
        monkeypatch.setattr(_gpu_unpack, "_BUFFER_BYTES", 1 << 18)
        monkeypatch.setattr(_gpu_unpack, "_BATCH_BYTES", 8 << 20)
        g = torch.Generator().manual_seed(0)
        sizes = [3, 100_000, 1 << 22, 5_000_001, 1 << 20, 7, 1 << 23]
        base = {str(i): torch.randn(n, generator=g).bfloat16() for i, n in enumerate(sizes)}
        target = {k: (t.float() * (1 + 1e-3 * torch.randn(t.shape, generator=g))).bfloat16() for k, t in base.items()}
        delta = tpde.pack(base, target, codec=codec)
        for _ in range(5):
            got = tpde.unpack(base, delta, device="cuda")
            for name, tensor in got.items():
                assert_same_bits(tensor.cpu(), target[name])

    def test_on_another_stream(self, tmp_path):
        deltas = chain(tmp_path)
        expected = tpde.unpack(tmp_path / "0", *deltas)
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            torch.cuda._sleep(20_000_000)
            got = tpde.unpack(tmp_path / "0", *deltas, device="cuda")
        for name, tensor in got.items():  # complete for every stream
            assert_same_bits(tensor.cpu(), expected[name])

    def test_damage_is_named(self, tmp_path):
        for codec in CODECS:
            folder = tmp_path / codec
            deltas = chain(folder, codec=codec)
            # raw makes densely changed tensors larger, so that they are stored as they are.
            name = "changed.weight" if codec == "raw" else "dense.weight"
            bad = damaged(deltas[0], name)
            for arguments in ({}, {"out": folder / "out"}):
                with pytest.raises(tpde.TpdeError, match=rf'damaged.safetensors: tensor "{name}": chunk \d'):
                    tpde.unpack(folder / "0", bad, *deltas[1:], device="cuda", **arguments)
            assert not list(folder.glob("out*"))
            with pytest.raises(tpde.BaseMismatchError, match=r"\.weight"):
                tpde.unpack(folder / "1", deltas[2], device="cuda")

    def test_memory_is_that_of_the_target(self):
        base = {str(i): torch.randn(1 << 22).bfloat16() for i in range(32)}  # 256 MiB
        target = {name: tensor.clone() for name, tensor in base.items()}
        for tensor in target.values():
            tensor[::100] += 1
        delta = tpde.pack(base, target, codec="elias")
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        got = tpde.unpack(base, delta, device="cuda")
        print(f"256 MiB in {time.perf_counter() - start:.3f} s")
        assert torch.cuda.max_memory_allocated() - before < (256 + 160) << 20
        del got
