"""The benches of streamed models, walked through on the CPU with tiny models, and the peer's format that one writes."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

import tpde
from support import assert_same_bits

TESTS = Path(__file__).parent
BENCH = TESTS / "bench"
sys.path[:0] = [str(BENCH), str(TESTS / "gpu_bundle")]

import bench_offload  # noqa: E402
import dfloat11_encode  # noqa: E402
import offload_measure  # noqa: E402
import offload_peers  # noqa: E402
import offload_tpde  # noqa: E402
import trained_model  # noqa: E402
from llama_shape import SIZES, Runner, empty_model, filled, logits_layer_by_layer, prompt  # noqa: E402
from offload_plot import Point, svg  # noqa: E402

TINY, CPU = SIZES["tiny"], torch.device("cpu")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def rows_of(path: Path) -> dict[str, dict]:
    return {row["what"]: row for row in json.loads(path.read_text())["rows"]}


def test_rows_are_verified_and_written(tmp_path):
    result = run(
        "bench_offload.py", "--size", "tiny", "--device", "cpu", "--seconds", "0.01", "--steps", "3",
        "--only", "pinned", "int4", "none", "--budgets", "base", "compressed", "all",
        "--json", str(tmp_path / "rows.json"), "--plot", str(tmp_path / "plot.svg"),
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    rows = rows_of(tmp_path / "rows.json")
    assert len(rows) == 1 + 1 + 3 + 1
    assert all(row["exact"] == "yes" and row["tokens_per_second"] > 0 for row in rows.values())
    resident = rows.pop("resident bf16")
    assert resident["host_seconds"] > 0 and resident["resident_host_seconds"] is None
    assert all(row["resident_host_seconds"] == resident["host_seconds"] for row in rows.values())
    graphs = {what for what, row in rows.items() if row["captured_seconds"] is not None}
    assert graphs == rows.keys() - {"pinned double-buffered bf16 stream"} and resident["captured_seconds"] > 0
    base = rows["tpde, base int4: base alone resident"]
    assert base["more"]["streamed_bytes"] > 0 and base["copy_busy"] is not None
    assert rows["tpde, base int4: all resident, compressed"]["more"]["streamed_bytes"] == 0
    assert rows["tpde, base none: all resident, compressed"]["more"]["decoded_bytes"] > 0
    assert rows["tpde, base int4: all resident"]["more"]["decoded_bytes"] == 0
    ElementTree.fromstring((tmp_path / "plot.svg").read_text())


@pytest.mark.parametrize("kind", ["plain", "transformers"])
def test_self_speculation_stands_beside_accelerate(tmp_path, kind):
    pytest.importorskip("transformers", minversion="5.0")
    pytest.importorskip("accelerate")
    result = run(
        "bench_offload.py", "--size", "tiny", "--device", "cpu", "--seconds", "0.2", "--steps", "8", "--model", kind,
        "--only", "accelerate", "speculation", "--budgets", "base", "all", "--json", str(tmp_path / "rows.json"),
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    rows = rows_of(tmp_path / "rows.json")
    suffix = ", transformers" if kind == "plain" else ""
    also = {"resident bf16", "accelerate cpu_offload", "resident bf16, transformers"} if suffix else set()
    name = "tpde, base int4, self-speculation: base alone resident"
    assert rows.keys() == {f"resident bf16{suffix}", f"accelerate cpu_offload{suffix}", name} | also
    row, accelerate = rows[name], rows[f"accelerate cpu_offload{suffix}"]
    assert row["tokens_per_pass"] > 1 and row["more"]["drafted"] >= row["more"]["accepted"] > 0
    assert row["more"]["streamed_bytes"] > 0 and row["host_seconds"] > 0
    assert row["more"]["times_accelerate"] == row["tokens_per_second"] / accelerate["tokens_per_second"]
    said = f"x accelerate cpu_offload{suffix}; random weights, --clear"
    assert "of drafted tokens accepted" in row["note"] and said in row["note"] and "resident model's" in row["note"]


def test_a_cache_of_fixed_size_says_the_same():
    model = filled(TINY, "plain", CPU).float()
    ids = prompt(TINY, 9, CPU)
    growing, fixed = (Runner(model, TINY, CPU, 20) for _ in range(2))
    for runner in (growing, fixed):
        runner._cache.keys, runner._cache.values = runner._cache.keys.float(), runner._cache.values.float()
        runner._cache.cos, runner._cache.sin = runner._cache.cos.float(), runner._cache.sin.float()
    with torch.no_grad():
        growing(ids), fixed(ids)
        fixed.fix()
        for token in ids[:, :6].T:
            torch.testing.assert_close(fixed(token[None]), growing(token[None]), rtol=1e-4, atol=1e-4)


def test_a_giant_is_compared_block_by_block(tmp_path):
    result = run(
        "bench_offload.py", "--size", "tiny", "--device", "cpu", "--seconds", "0.01", "--steps", "3", "--layers", "4",
        "--repeat-layers", "2", "--giant", "--giant-gib", "0.0003", "--json", str(tmp_path / "rows.json"),
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    (row,) = rows_of(tmp_path / "rows.json").values()
    assert "all 4 blocks and logits compared on bits" in row["note"] and row["tokens_per_second"] > 0


def test_a_row_that_fails_is_one_line(tmp_path):
    result = run(
        "bench_offload.py", "--size", "tiny", "--device", "cpu", "--seconds", "0.01", "--only", "int4", "--budgets",
        "base", "0.0000001", "all", "--json", str(tmp_path / "rows.json"),
    )  # fmt: skip
    assert result.returncode != 0 and "some rows failed" in result.stderr
    rows = list(rows_of(tmp_path / "rows.json").values())
    assert len(rows) == 4 and "the smallest budget" in rows[2]["note"] and rows[3]["tokens_per_second"] > 0


def test_tokens_that_come_several_at_once():
    """As those of self-speculation; here each pass yields one."""
    s = offload_measure.Settings(TINY, "plain", CPU, seconds=0.01, most_steps=4, row_seconds=60)
    resident = filled(TINY, "plain", CPU)
    reference = offload_measure.measure(s, offload_measure.Figures("resident", "yes"), resident, None, 0)

    def generate(model, ids, n):
        with torch.no_grad():
            runner = Runner(model, TINY, CPU, ids.shape[1] + n)
            said = [runner(ids)[:, -1:].argmax(-1)]
            while len(said) < n:
                said.append(runner(said[-1])[:, -1:].argmax(-1))
        return torch.cat(said, 1), n

    streamed = offload_tpde.Streamed(s, "int4", offload_peers.HostWeights(s, resident), reference)
    row = streamed.generated(streamed.planned("base", ", one by one"), generate)
    assert row.tokens_per_pass == 1 and row.tokens_per_second > 0 and row.host_seconds > 0
    assert f"all {len(reference.tokens)} tokens are the resident model's" in row.note
    with pytest.raises(tpde.InternalError, match=f"expected {len(reference.tokens)} tokens"):
        streamed.generated(
            streamed.planned("base", ", too few"), lambda model, ids, n: (generate(model, ids, n - 1)[0], n)
        )
    with pytest.raises(tpde.InternalError, match="expected the tokens"):
        streamed.generated(
            streamed.planned("base", ", wrongly"), lambda model, ids, n: ((generate(model, ids, n)[0] + 1) % 256, n)
        )


def test_what_drafts_say_is_no_row():
    pytest.importorskip("transformers", minversion="5.0")
    s = offload_measure.Settings(TINY, "transformers", CPU, seconds=0.01, most_steps=4, row_seconds=60)
    resident = filled(TINY, "transformers", CPU)
    reference = offload_measure.measure(s, offload_measure.Figures("resident", "yes"), resident, None, 0)
    streamed = offload_tpde.Streamed(s, "int2", offload_peers.HostWeights(s, resident), reference)

    def drafted(model, ids, n):
        draft = tpde.SelfSpeculation(model).draft
        out = draft.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False)
        return out[:, ids.shape[1] :], 1

    with pytest.raises(tpde.InternalError, match="expected the tokens"):
        streamed.generated(streamed.planned("base", ", drafts alone"), drafted)


def test_tokens_may_differ_where_logits_are_a_tie():
    row = offload_measure.Figures("a row", "yes")
    reference = offload_measure.Reference(torch.tensor([[5]]), torch.empty(0), [1, 2, 2], 0.0)
    step = 2.0**-5  # of bf16 from 4 to 8
    largest = torch.tensor([0.0, 5.0, 5.0, 1.0])

    def judged(tokens: list[int], missing: float) -> None:
        logits = largest.repeat(1, 1 + len(tokens), 1)
        logits[..., 2] -= missing * step
        offload_measure.require_tokens(row, torch.tensor([tokens]), lambda ids: logits, reference)

    judged([1, 2, 2], 100)
    assert row.note == "all 3 tokens are the resident model's"
    judged([1, 1, 2], 3)
    assert "the first 1 of 3 tokens are the resident model's, then two logits were a tie" in row.note
    with pytest.raises(tpde.InternalError, match="expected the tokens"):
        judged([1, 1, 2], 4)


def test_host_time_is_what_keeps_the_thread_busy():
    s = offload_measure.Settings(TINY, "plain", CPU, seconds=0.01, most_steps=4, row_seconds=60)

    def burn() -> None:
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass

    busy, took = offload_measure.alone(s, lambda: time.sleep(0.02))
    assert busy < 0.01 and took >= 0.02
    busy, _ = offload_measure.alone(s, burn)
    assert 0.02 <= busy < 0.04
    row = offload_measure.Figures("a row", "yes", seconds=0.1, host_seconds=0.02, resident_host_seconds=0.015)
    assert bench_offload.cells(row, 1)[5:7] == ("20.0 ms, 20.0%", "5.0 ms, 5.0%")


def test_the_copy_engine_idles_between_passes_too():
    s = offload_measure.Settings(TINY, "plain", CPU, seconds=0.01, most_steps=4, row_seconds=60)
    measured = SimpleNamespace(copy_seconds=0.01, decode_seconds=0.0, copied_bytes=7)
    traced: list[bool] = []
    runtime = SimpleNamespace(trace=lambda on=True: traced.append(on), measured=lambda: measured)
    row = offload_measure.Figures("a row", "yes")
    offload_tpde.traced(s, row, runtime, lambda: time.sleep(0.04))
    assert traced == [True, False] and 0 < row.copy_busy <= 0.25
    measured.copied_bytes = 0
    row.copy_busy = None
    offload_tpde.traced(s, row, runtime, lambda: None)
    assert row.copy_busy is None


@pytest.mark.parametrize("kind", ["plain", "transformers"])
@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
def test_diffusers_waits_for_all_its_copies(monkeypatch, level, kind):
    """On a stream whose copies come when somebody waits for it, and not before."""
    go = pytest.importorskip("diffusers.hooks.group_offloading")
    if kind == "transformers":
        pytest.importorskip("transformers")

    class Backend:
        def __init__(self, device):
            self.Stream, self.current_stream, self.stream = Stream, Stream, contextlib.nullcontext

    class Stream(list):
        def synchronize(self):
            for there, source in self:
                there.copy_(source)
            self.clear()

    def transfer(group, tensor, source, stream):
        later = group.stream is not None and group.non_blocking
        tensor.data = torch.full_like(source, torch.nan) if later else source.clone()
        if later:
            group.stream.append((tensor.data, source))

    offload = go.ModuleGroup._offload_to_memory
    monkeypatch.setattr(go, "TorchDeviceBackend", Backend)
    monkeypatch.setattr(go, "send_to_device", lambda what, *_, **__: what)
    for name, stub in {
        "_transfer_tensor_to_device": transfer,
        "_to_cpu": staticmethod(lambda tensor, _: tensor.data),
        "_pinned_memory_tensors": lambda group: contextlib.nullcontext(group.cpu_param_dict),
        "_offload_to_memory": lambda group: offload(group) if group.stream is not None else None,
    }.items():
        monkeypatch.setattr(go.ModuleGroup, name, stub)
    s = offload_measure.Settings(TINY, kind, CPU, seconds=0.01, most_steps=4, row_seconds=60)
    resident = filled(TINY, kind, CPU)
    weights = offload_peers.HostWeights(s, resident)
    # There are no streams on other devices; and weights that are on the CPU are not taken for some that are offloaded.
    there = {"onload_device": torch.device("cuda"), "offload_device": torch.device("meta"), "use_stream": True}
    apply = go.apply_group_offloading
    monkeypatch.setattr("diffusers.hooks.apply_group_offloading", lambda m, **kw: apply(m, **{**kw, **there}))
    model = offload_peers._diffusers(s, weights, level)
    ids = prompt(TINY, 9, CPU)
    with torch.no_grad():
        one, other = (Runner(each, TINY, CPU, 16) for each in (resident, model))
        for part in (ids[:, :4], ids[:, 4:5], ids[:, 5:]):
            assert_same_bits(other(part), one(part))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("script", ["bench_offload.py", "trained_model.py"])
def test_without_a_gpu_they_say_so(script):
    result = run(script)
    assert result.returncode != 0 and "no CUDA device" in result.stderr


def test_wrong_bits_are_no_row():
    logits = torch.randn(1, 3, 8).bfloat16()
    offload_measure.require_logits("a copy", logits.clone(), logits)
    other = logits.clone()
    other.view(torch.int16)[0, 1, 2] ^= 1
    with pytest.raises(tpde.InternalError, match="bit for bit"):
        offload_measure.require_logits("a change", other, logits)


@pytest.mark.parametrize("kind", ["plain", "transformers"])
def test_either_model_is_the_same(kind):
    if kind == "transformers":
        pytest.importorskip("transformers")
    ids = prompt(TINY, 9, CPU)
    model = filled(TINY, kind, CPU)
    assert {name for name, _ in model.named_parameters()} == {
        n for n, _ in empty_model(TINY, "plain").named_parameters()
    }
    with torch.no_grad():
        expected = dict(logits_layer_by_layer(TINY, ids))["logits"]
        runner = Runner(model, TINY, CPU, 16)
        parts = [runner(ids[:, :4]), runner(ids[:, 4:5]), runner(ids[:, 5:])]
        torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=0.05, atol=0.02)
        if kind == "plain":
            assert_same_bits(Runner(model, TINY, CPU, 16)(ids), expected)


@pytest.mark.parametrize("scale", [0.02, 40.0])
@pytest.mark.parametrize("n", [64, 5000, 28_672, 100_003])
def test_dfloat11_bytes_are_those_of_its_encoder(n, scale, monkeypatch):
    pytest.importorskip("dahuffman")
    try:
        utils = dfloat11_encode.utils()
    except ModuleNotFoundError:
        pytest.skip("dfloat11 is not installed")
    monkeypatch.setattr(dfloat11_encode, "_PIECE", 1009)
    torch.manual_seed(n)
    weight = (torch.randn(n) * (scale if scale < 1 else torch.exp(5 * torch.randn(n)))).bfloat16()
    parts = [weight[:40], weight[40:]]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        codec, _, table = utils.get_32bit_codec(utils.get_codec(weight)[1])
        luts = utils.get_luts(table)
        stream, others, positions, gaps, _ = utils.encode_weights(parts, codec, 8, 512)
    got, shared_bytes = dfloat11_encode.encoded(parts, CPU)
    expected = {
        "luts": luts, "encoded_exponent": stream, "sign_mantissa": others, "gaps": gaps,
        "output_positions": positions.view(torch.uint8),
    }  # fmt: skip
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert_same_bits(got[name], tensor)
    words = positions.view(torch.int32)
    assert shared_bytes == 512 * 4 + 4 + 2 * int((words[1:] - words[:-1]).max())


def test_a_trained_model_to_the_last_bit(tmp_path):
    result = run("trained_model.py", "--tiny", "--device", "cpu", "--steps", "8", "--json", str(tmp_path / "rows.json"))
    assert result.returncode == 0, result.stdout + result.stderr
    rows = {row["base"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert rows.keys() == set(trained_model.BASES)
    assert len({row["perplexity"] for row in rows.values()}) == 1
    assert all(row["streamed_layers"] > 0 for row in rows.values())
    assert rows["int4"]["agreement"] > rows["int2"]["agreement"] > 0


def test_tokens_of_a_pass():
    # Drafts of 2: both accepted and one more; then none accepted; then one.
    same = [[True, True, True, False, True, False, True, True]]
    assert trained_model.tokens_per_pass(same, 2) == (2.0, 1.0)
    assert trained_model.tokens_per_pass([[True] * 9], 4) == (5.0, 4.0)


def test_a_picture_with_one_point():
    picture = ElementTree.fromstring(svg("<one>", [Point("a & b", 3.0, 0.4, "line")]))
    assert len(picture.findall("{http://www.w3.org/2000/svg}circle")) == 1


def test_slim_wheels(tmp_path):
    script = TESTS / "gpu_bundle" / "slim_wheel.py"
    if not script.exists():
        pytest.skip("the bundle does not hold what makes it")
    wheel = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as out:
        out.writestr("a/lib_cuda118.so", b"x" * 1000)
        out.writestr("a/lib_cuda130.so", b"y")
        out.writestr("a-1.dist-info/RECORD", "a/lib_cuda118.so,,\na/lib_cuda130.so,,\n")
    subprocess.run([sys.executable, script, wheel, "lib_cuda(?!130)"], check=True)
    with zipfile.ZipFile(wheel) as made:
        assert made.namelist() == ["a/lib_cuda130.so", "a-1.dist-info/RECORD"]
        assert made.read("a-1.dist-info/RECORD") == b"a/lib_cuda130.so,,\n"


@pytest.mark.parametrize("wrong", [["--budgets", "x"], ["--budgets", "0"], ["--steps", "1"]], ids=str)
def test_wrong_usage(monkeypatch, capsys, wrong):
    monkeypatch.setattr(sys, "argv", ["bench_offload.py", *wrong])
    with pytest.raises(SystemExit) as refused:
        bench_offload.parsed()
    assert refused.value.code == 2 and wrong[0] in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--loading", "--json", "--plot"])
def test_folders_that_are_not_there_are_wrong_usage(monkeypatch, capsys, tmp_path, option):
    path = tmp_path / "none" if option == "--loading" else tmp_path / "none" / "figures"
    monkeypatch.setattr(sys, "argv", ["bench_offload.py", option, str(path)])
    with pytest.raises(SystemExit) as refused:
        bench_offload.parsed()
    assert refused.value.code == 2 and f"{option}: {tmp_path / 'none'} is no folder" in capsys.readouterr().err
