"""`tpde plan`: what a compressed model would do within a budget, found out without loading it."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch

import tpde
from test_load import CPU, config, packed, saved, without_data
from tiny_models import GPT2, Llama, made
from tpde import _forecast, _load
from tpde._forecast import forecast
from tpde._residency import Residency, make_plan, smallest_budget

RATES = {"copy": 50.0, "decode": 500.0, "device": "cpu"}


@pytest.mark.parametrize("name", ["llama", "qwen", "gpt2"])
@pytest.mark.parametrize("base", ["int4", "none"])
def test_the_plan_is_that_of_the_loaded_model(tmp_path, name, base):
    transformers = pytest.importorskip("transformers")
    transformers.AutoModelForCausalLM.from_config(config(transformers, name)).bfloat16().save_pretrained(tmp_path / "m")
    tpde.compress(tmp_path / "m", tmp_path / "out", base=base, progress=False)
    loaded = tpde.load(tmp_path / "out", **CPU)
    runtime = tpde.runtime.of(loaded)
    with _load.opened(tmp_path / "out") as model:
        known = _forecast._skeleton(model)
        assert known is not None
        sizes = _forecast.sizes_of(model, known, True, cuda=False)
        rough = _forecast.sizes_of(model, known, True, cuda=True, exact=False)
        exact = _forecast.sizes_of(model, known, True, cuda=True)
        by_names = _forecast.sizes_of(model, None, True, cuda=False)
    plan = runtime.plan
    assert sizes.fixed_bytes == plan.fixed_bytes and sizes.host_bytes >= runtime._engine().memory.arena.used - 4096
    assert sorted(sizes.layers, key=str) == sorted(plan.layers, key=str)
    for n, more in zip(exact.layers, rough.layers, strict=True):
        assert n.residual_bytes <= more.residual_bytes
    assert exact.fixed_bytes <= rough.fixed_bytes
    # Without transformers the names tell the same, but that a layer of an odd name may stay whole.
    residuals = sorted(n.residual_bytes for n in sizes.layers)
    if base != "none" or name == "llama":
        assert sorted(n.residual_bytes for n in by_names.layers) == residuals
    for share in (0.0, 0.4, 1.0):
        smallest = smallest_budget(plan.layers, plan.fixed_bytes)
        budget = smallest + int(share * (runtime.vram - smallest))
        runtime.set_vram(budget, reserve=0)
        ours = make_plan(sizes.layers, budget, sizes.fixed_bytes)
        assert ours.streamed_bytes == runtime.plan.streamed_bytes and ours.peak_bytes <= budget


def test_the_report(tmp_path):
    out = packed(made(Llama, hidden=128, blocks=2), tmp_path)
    got = forecast(out, "2MiB", reserve=0, **RATES)
    everything, smallest = got.everything, got.smallest
    assert got.plan.count(Residency.WHOLE) == 15 and got.plan.limit == "none"
    got = forecast(out, smallest, reserve=0, **RATES)
    plan, text = got.plan, str(got)
    assert plan.streamed_bytes > 0 and plan.limit == "copy"
    assert plan.copy_seconds == pytest.approx(plan.streamed_bytes / 50e9)
    assert plan.decode_seconds == pytest.approx(plan.decoded_bytes / 500e9)
    assert re.search(r"layers\.0\.down_proj \.\.\. .* streamed", text) and "rates: as given" in text
    assert f"smallest budget: {_forecast.amount(smallest)}; everything whole: {_forecast.amount(everything)}" in text
    with pytest.raises(tpde.BudgetError, match=re.escape(f"({smallest} bytes)")) as refused:
        forecast(out, smallest - 1, reserve=0, **RATES)
    assert refused.value.smallest == smallest
    # The reserve is part of the budget.
    with pytest.raises(tpde.BudgetError) as refused:
        forecast(out, smallest, **RATES)
    got = forecast(out, refused.value.smallest, **RATES)
    assert got.reserve == got.vram // 8 and got.plan.budget == got.vram - got.reserve
    assert forecast(out, "2MiB", device="cpu").rates_from.startswith("assumed")
    assert forecast(out, "2MiB", device="cpu", decode=7.0).plan.rates.decode == 7.0


def test_refusals(tmp_path):
    out = packed(made(Llama, hidden=128), tmp_path)
    for options, match in (
        ({"copy": 0.0}, "copy: expected a rate"),
        ({"decode": float("nan")}, "decode: expected a rate"),
        ({"vram": "much"}, "vram: expected a size"),
        ({"vram": None}, "there is no GPU"),
    ):
        with pytest.raises(tpde.ArgumentError, match=match):
            forecast(out, **({"vram": "1GiB", "device": "cpu"} | options))
    with pytest.raises(tpde.ArgumentError, match="no compressed model"):
        forecast(tmp_path / "model", "1GiB", **RATES)


def test_load_refuses_a_budget_before_anything_is_read(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_config(config(transformers, "llama")).bfloat16()
    model.save_pretrained(tmp_path / "m")
    tpde.compress(tmp_path / "m", tmp_path / "out", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(_load.PackedModel, "blob", lambda *_: pytest.fail("a blob was read"))
        with pytest.raises(tpde.BudgetError) as refused:
            tpde.load(tmp_path / "out", 20_000, **CPU)
    loaded = tpde.load(tmp_path / "out", refused.value.smallest, **CPU)
    assert tpde.runtime.of(loaded).plan.streamed_bytes > 0


def test_measured_stands_beside_predicted(tmp_path):
    model = made(GPT2, hidden=128)
    out = packed(model, tmp_path)
    other = without_data(GPT2, {"hidden": 128})
    runtime = tpde.load_into(other, out, **CPU)
    assert "measured" not in runtime.report()
    ids = torch.zeros(1, 3, dtype=torch.int64)
    other(ids)
    text = runtime.report()
    assert re.search(r"predicted +measured", text) and text.endswith(str(runtime.measured()).splitlines()[-1])


def test_command_line(tpde_cli, tmp_path):
    model = made(Llama, hidden=128, blocks=2)
    out = packed(model, tmp_path)
    options = ("--copy", "50", "--decode", "500", "--device", "cpu")
    done = tpde_cli("plan", out, "--vram", "4MiB", *options)
    assert done.returncode == 0, done.stderr
    assert "names and shapes" in done.stdout and "limit: none" in done.stdout
    done = tpde_cli("plan", out, "--vram", "1500KiB", "--reserve", "0GB", "--json", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["vram"] == 1500 << 10 and found["reserve"] == 0 and found["gpu"] is None
    plan = found["plan"]
    assert plan["peak_bytes"] <= plan["budget"] == 1500 << 10
    assert {row["residency"] for row in plan["layers"]} <= {"whole", "resident", "streamed"}
    assert sum(row["copied_bytes"] for row in plan["layers"]) == plan["streamed_bytes"]
    assert plan["seconds"] == max(plan["copy_seconds"], plan["decode_seconds"])
    done = tpde_cli("plan", out, "--vram", "10KiB", "--device", "cpu")
    assert done.returncode == 1 and "the smallest budget that can is" in done.stderr
    for wrong in (("plan",), ("plan", out, "--copy", "0"), ("plan", out, "--vram", "much")):
        assert tpde_cli(*wrong).returncode == 2


def test_a_model_that_transformers_does_not_know(tmp_path, tpde_cli):
    pytest.importorskip("transformers")
    out = packed(made(Llama, hidden=128), tmp_path)
    for text in ("{}", '{"model_type": "of tomorrow"}'):
        (out / "config.json").write_text(text)
        done = tpde_cli("plan", out, "--vram", "1GiB")
        assert done.returncode == 0, done.stderr
        assert "told from other tensors by names and shapes" in done.stdout


def test_without_transformers(tmp_path, monkeypatch):
    model = made(GPT2, hidden=128, vocabulary=160)
    saved(model, tmp_path / "model")
    tpde.compress(tmp_path / "model", tmp_path / "out", progress=False)
    (tmp_path / "out" / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    got = forecast(tmp_path / "out", "4MiB", **RATES)
    # Four matrices of each of three blocks, and the embedding that is the output matrix, too.
    assert len(got.plan.layers) == 13 and got.host_bytes > model.wte.weight.nbytes
    names = [n.name for n in got.plan.layers]
    assert names[:5] == ["h.0.c_attn", "h.0.c_fc", "h.0.c_out", "h.0.c_proj", "h.1.c_attn"] and names[-1] == "wte"
