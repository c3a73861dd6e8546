"""Compressed models that are loaded onto a GPU."""

from __future__ import annotations

import gc

import pytest
import torch

import tpde
from gpu_support import NEEDS_GPU
from support import assert_same_bits
from test_load import IDS, LLAMA, MODELS, bitsandbytes, packed, without_data
from tiny_models import Llama, made, tokens
from tpde import _load, _upload
from tpde._forecast import forecast
from tpde._residency import Residency, smallest_budget

pytestmark = NEEDS_GPU
LARGE = {"blocks": 4, "hidden": 1024, "vocabulary": 4096}


def at(runtime, share: float, reserve: int = 0) -> None:
    plan = runtime.plan
    smallest = smallest_budget(plan.layers, plan.fixed_bytes)
    everything = plan.fixed_bytes + sum(n.weight_bytes + 512 for n in plan.layers)
    runtime.set_vram(smallest + int(share * (everything - smallest)) + reserve, reserve=reserve)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("base", ["int2", "int3", "int4", "int8", "none"])
def test_logits(tmp_path, name, base):
    kind, options = MODELS[name]
    model = made(kind, **options)
    out = packed(model, tmp_path, base)
    other = without_data(kind, options)
    runtime = tpde.load_into(other, out, reserve=0)
    assert all(t.is_cuda for t in (*other.parameters(), *other.buffers()))
    model.cuda()
    inputs = [tokens(1).cuda(), tokens(8).cuda(), tokens(1, 1).cuda()]
    with torch.no_grad():
        expected = [model(ids) for ids in inputs]
        for share in (1.0, 0.5, 0.0):
            at(runtime, share)
            for _ in range(2):
                for ids, logits in zip(inputs, expected, strict=True):
                    assert_same_bits(other(ids).cpu(), logits.cpu())
    runtime.synchronize()
    assert "page-locked" in runtime.report()


def test_bases_are_read_to_the_device_while_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(_upload, "_WINDOW_BYTES", 4096)
    out = packed(made(Llama, hidden=128), tmp_path, "int3")
    with _load.opened(out) as model:
        names = [name for name, row in model.rows.items() if row.quantised is not None]
        taken = [sum(part.nbytes for part in model.base(name).parts()) for name in names]
        upload = _upload.Upload(torch.device("cuda", 0), sum(taken[:3]))
        assert max(taken[:3]) > 3 * 4096
        for i, name in enumerate(names):
            base = model.base(name, upload)
            assert base.device.type == ("cuda" if i < 3 else "cpu")
            for got, want in zip(base.parts(), model.base(name).parts(), strict=True):
                assert_same_bits(got.cpu(), want)
        assert upload.room == 0


def test_a_base_of_bitsandbytes(tmp_path):
    model = made(Llama, hidden=128)
    out = bitsandbytes(model, tmp_path)
    other = without_data(Llama, {"hidden": 128})
    runtime = tpde.load_into(other, out, reserve=0)
    model.cuda()
    for share in (0.0, 0.6):
        at(runtime, share)
        with torch.no_grad():
            for _ in range(2):
                assert_same_bits(other(tokens().cuda()).cpu(), model(tokens().cuda()).cpu())
    runtime.synchronize()


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_memory_is_within_the_budget_from_the_start(tmp_path, share):
    out = packed(made(Llama, **LARGE), tmp_path)
    other = without_data(Llama, LARGE)
    with pytest.raises(tpde.BudgetError) as refused:
        tpde.load_into(other, out, "1MiB", reserve=0)
    vram = refused.value.smallest + int(share * (64 << 20))
    del other
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    other = without_data(Llama, LARGE)
    runtime = tpde.load_into(other, out, vram, reserve=0)
    assert torch.cuda.max_memory_allocated() - before <= runtime.vram
    assert runtime.plan.count(Residency.STREAMED) > 0
    del other, runtime
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + 4096, "memory does not come back"


def test_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA, **IDS)
    transformers.AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(tmp_path / "model")
    # Not the model itself, of which bfloat16() has rounded the frequencies of the rotary embedding, too.
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16).eval()
    tpde.compress(tmp_path / "model", tmp_path / "out", progress=False)
    loaded = tpde.load(tmp_path / "out", reserve=0)
    assert loaded.device.type == "cuda" and loaded.dtype is torch.bfloat16
    at(tpde.runtime.of(loaded), 0.0)
    model.cuda()
    ids = torch.randint(3, 160, (2, 9), generator=torch.Generator().manual_seed(1)).cuda()
    with torch.no_grad():
        assert_same_bits(loaded(input_ids=ids).logits.cpu(), model(input_ids=ids).logits.cpu())
    options = {"max_new_tokens": 6, "do_sample": False}
    assert loaded.generate(ids, **options).tolist() == model.generate(ids, **options).tolist()


def test_the_plan_is_measured_and_what_is_loaded_keeps_it(tmp_path):
    out = packed(made(Llama, **LARGE), tmp_path)
    free = forecast(out)
    assert free.gpu is not None and free.gpu["memory_free"] in (None, free.vram)
    assert free.plan.count(Residency.WHOLE) == len(free.plan.layers)
    vram = free.smallest + (8 << 20)
    made_before = forecast(out, vram, reserve=0)
    assert made_before.rates_from.startswith("measured on") and made_before.plan.limit in ("copy", "decode")
    assert 2 < made_before.plan.rates.copy < 500 and made_before.plan.rates.decode > 10
    print(f"\n{made_before}")
    other = without_data(Llama, LARGE)
    runtime = tpde.load_into(other, out, vram, reserve=0)
    ids = tokens(1, 1, 4096).cuda()
    with torch.no_grad():
        for _ in range(3):
            other(ids)
    print(runtime.report())
    # What the allocator really takes is known by now: more may be resident, never less.
    assert runtime.plan.streamed_bytes <= made_before.plan.streamed_bytes
    assert sorted((n.name, n.residual_bytes) for n in runtime.plan.layers) == sorted(
        (n.name, n.residual_bytes) for n in made_before.plan.layers
    )
    measured = runtime.measured()
    assert measured.seconds is not None and measured.seconds >= 0.5 * made_before.plan.copy_seconds
