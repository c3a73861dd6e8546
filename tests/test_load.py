"""Compressed models, loaded as streamed ones: logits are those of the resident model, on bits."""

from __future__ import annotations

import re
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import bnb_fixture
import tpde
from streaming import engine_of
from support import assert_same_bits
from tiny_models import GPT2, Llama, made, tokens
from tpde import _load, _parts
from tpde._residency import smallest_budget
from tpde._streamed import StreamedEmbedding, StreamedLinear

MODELS = {
    "llama": (Llama, {"hidden": 128}),
    "tied": (Llama, {"hidden": 128, "tied": True, "vocabulary": 160}),
    "gpt2": (GPT2, {"hidden": 128, "vocabulary": 160}),
}
CPU = {"device": "cpu", "reserve": 0}


def saved(model: nn.Module, folder, shards: int = 1, **more: torch.Tensor):
    """Writes a model as a folder, weights that are tied once."""
    state = {name: tensor.detach() for name, tensor in model.named_parameters()} | more
    folder.mkdir()
    names = sorted(state)
    for i in range(shards):
        save_file({name: state[name].contiguous() for name in names[i::shards]}, folder / f"m{i}.safetensors")
    return folder


def packed(model, tmp_path, base="int4", **options):
    saved(model, tmp_path / "model")
    tpde.compress(tmp_path / "model", tmp_path / "out", base=base, progress=False, **options)
    return tmp_path / "out"


def without_data(kind, options) -> nn.Module:
    with torch.device("meta"):
        return made(kind, **options)


def at(runtime, share: float) -> None:
    """Gives a model a share of the budget between the smallest and the one that it has, which holds everything."""
    smallest = smallest_budget(runtime.plan.layers, runtime.plan.fixed_bytes)
    runtime.set_vram(smallest + int(share * (runtime.vram - smallest)), reserve=0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("base", ["int2", "int4", "int8", "none"])
def test_logits(tmp_path, name, base):
    kind, options = MODELS[name]
    model = made(kind, **options)
    out = packed(model, tmp_path, base)
    other = without_data(kind, options)
    runtime = tpde.load_into(other, out, **CPU)
    assert not any(t.is_meta for t in (*other.parameters(), *other.buffers()))
    inputs = [tokens(1, 7, 96), tokens(8, 5, 96), tokens(1, 1, 96)]
    expected = [model(ids).detach() for ids in inputs]
    for share in (1.0, 0.5, 0.0):
        at(runtime, share)
        for ids, logits in zip(inputs, expected, strict=True):
            assert_same_bits(other(ids).detach(), logits)
    if name == "gpt2":
        assert isinstance(other.wte, StreamedEmbedding) and isinstance(other.lm_head, StreamedLinear)
    if name == "llama" and base == "int4":
        assert len(runtime.plan.layers) == len([m for m in model.modules() if type(m) is nn.Linear])
    runtime.unload()
    for key, tensor in model.state_dict().items():
        assert_same_bits(other.state_dict()[key], tensor)
    if name != "llama":
        assert other.lm_head.weight is (other.wte if name == "gpt2" else other.embed_tokens).weight


def bitsandbytes(model, tmp_path):
    """Compresses a model against what bitsandbytes would make of it. Returns the folder."""
    saved(model, tmp_path / "model", shards=2)
    parts = {}
    for name, weight in model.named_parameters():
        weight = weight.detach()
        if weight.dim() < 2 or "embed" in name:
            parts[name] = weight
        elif "q_proj" in name:
            parts |= bnb_fixture.int8(name.removesuffix(".weight"), weight)
        else:
            parts |= bnb_fixture.nf4(name, weight, "_proj" in name)[0]
    (tmp_path / "bnb").mkdir()
    save_file(parts, tmp_path / "bnb" / "model.safetensors")
    tpde.compress(tmp_path / "model", tmp_path / "out", base=tmp_path / "bnb", progress=False)
    return tmp_path / "out"


def test_a_base_of_bitsandbytes(tmp_path):
    model = made(Llama, hidden=128)
    out = bitsandbytes(model, tmp_path)
    other = without_data(Llama, {"hidden": 128})
    runtime = tpde.load_into(other, out, verify=True, **CPU)
    kinds = {layer.base.kind for layer in engine_of(runtime).memory.layers}
    assert kinds == {"int8_rows", "codebook"}
    for share in (0.0, 0.6):
        at(runtime, share)
        assert_same_bits(other(tokens()).detach(), model(tokens()).detach())


def test_blobs_are_read_into_the_arena(tmp_path, monkeypatch):
    """No residual is anywhere else in memory, and embeddings are read to where they stay."""
    out = packed(made(Llama, hidden=128), tmp_path)
    residual = load_file(out / "residual.safetensors")
    sizes = {tensor.numel() for name, tensor in residual.items() if name.endswith("tpde_blob")}
    read = []
    real = _parts.Parts.read

    def watched(self, number, room):
        read.append((room.data_ptr(), room.numel()))
        real(self, number, room)

    monkeypatch.setattr(_parts.Parts, "read", watched)
    other = without_data(Llama, {"hidden": 128})
    memory = engine_of(tpde.load_into(other, out, **CPU)).memory
    first = memory.arena.tensor.data_ptr()
    blobs = [n for address, n in read if first <= address < first + memory.arena.used]
    assert len(blobs) == len(memory.layers) and set(blobs) <= sizes
    for number, layer in enumerate(memory.layers):
        assert_same_bits(memory.packed(number)[1], residual[f"{layer.name}.weight.tpde_blob"])


@pytest.mark.parametrize("options", [{}, {"embeddings": False}, {"verify": True}])
def test_a_module_that_has_weights_already(tmp_path, options):
    model = made(Llama, hidden=128)
    out = packed(model, tmp_path)
    other = made(Llama, seed=1, hidden=128)
    other.norm.weight.requires_grad_(False)
    tpde.load_into(other, out, "1GiB", **CPU, **options)
    assert_same_bits(other(tokens()).detach(), model(tokens()).detach())
    assert not other.norm.weight.requires_grad and other.layers[0].input_norm.weight.requires_grad
    assert isinstance(other.embed_tokens, StreamedEmbedding) == options.get("embeddings", True)


def test_what_is_stored_as_it_is_stays_resident(tmp_path):
    """Weights that packing would not make smaller, small ones, buffers, and what the file lacks."""
    model = made(Llama, hidden=128)
    noise = torch.randint(-(2**15), 2**15, (128, 128), generator=torch.Generator().manual_seed(0))
    model.layers[1].q_proj.weight.data = noise.to(torch.int16).view(torch.bfloat16).nan_to_num(1.0)
    model.register_buffer("counted", torch.arange(5))
    saved(model, tmp_path / "model", counted=model.counted)
    tpde.compress(tmp_path / "model", tmp_path / "out", base="none", progress=False)
    other = without_data(Llama, {"hidden": 128})
    other.register_buffer("counted", torch.zeros(5, dtype=torch.int64))
    other.register_buffer("own", torch.ones(2), persistent=False)
    runtime = tpde.load_into(other, tmp_path / "out", **CPU)
    assert other.counted.tolist() == list(range(5)) and other.own.tolist() == [1, 1]
    at(runtime, 0.0)
    assert_same_bits(other(tokens()).detach(), model(tokens()).detach())


def test_refusals_leave_the_module_as_it_was(tmp_path):
    model = made(Llama, hidden=128)
    out = packed(model, tmp_path)

    def refused(error, match, other, folder=out, **options):
        before = {name: (type(m), id(p)) for name, m in other.named_modules() for p in m._parameters.values()}
        with pytest.raises(error, match=match):
            tpde.load_into(other, folder, **{**CPU, **options})
        assert before == {name: (type(m), id(p)) for name, m in other.named_modules() for p in m._parameters.values()}

    refused(tpde.NotFoundError, "no such folder", made(Llama, hidden=128), tmp_path / "none")
    refused(tpde.ArgumentError, "no compressed model", made(Llama, hidden=128), tmp_path / "model")
    refused(tpde.ArgumentError, "expected shape", made(Llama, hidden=256))
    refused(tpde.NotFoundError, r"has no layers\.3\.\S+", without_data(Llama, {"hidden": 128, "blocks": 4}))
    refused(tpde.ArgumentError, "bfloat16 in .*float32 in the module", made(Llama, torch.float32, hidden=128))
    refused(tpde.ArgumentError, "vram: expected a size", made(Llama, hidden=128), vram="much")
    with pytest.warns(UserWarning, match=r"lacks layers\.2"):
        tpde.load_into(made(Llama, hidden=128, blocks=2), out, **CPU)
    base = out / "base" / "model.safetensors"
    data = bytearray(base.read_bytes())
    data[-40] ^= 1
    base.write_bytes(data)
    refused(tpde.BaseMismatchError, "digest", made(Llama, hidden=128), verify=True)
    base.unlink()
    refused(tpde.NotFoundError, "base", made(Llama, hidden=128))


def test_what_is_tied_in_the_module_alone_is_refused(tmp_path):
    """Which of the two would be lost cannot be right; of equal ones either can."""
    model = made(Llama, hidden=128)
    out = packed(model, tmp_path)
    other = without_data(Llama, {"hidden": 128, "tied": True})
    with pytest.raises(tpde.ArgumentError, match=r"embed_tokens\.weight, lm_head\.weight: are one tensor in the"):
        tpde.load_into(other, out, **CPU)
    assert isinstance(other.lm_head, nn.Linear) and other.lm_head.weight.is_meta
    with torch.no_grad():
        model.lm_head.weight.copy_(model.embed_tokens.weight)
    (tmp_path / "equal").mkdir()
    tpde.load_into(other, packed(model, tmp_path / "equal"), **CPU)
    assert_same_bits(other(tokens()).detach(), model(tokens()).detach())


def test_rounding_is_not_silent(tmp_path):
    model = made(Llama, hidden=128)
    model.norm.float()
    out = packed(model, tmp_path)
    with pytest.warns(UserWarning, match=r"norm\.weight: rounded from torch\.float32 to torch\.bfloat16"):
        tpde.load_into(made(Llama, hidden=128), out, **CPU)
    wide = made(Llama, hidden=128)
    wide.norm.float()
    wide.layers[0].input_norm.float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tpde.load_into(wide, out, **CPU)
    assert_same_bits(wide.norm.weight.detach(), model.norm.weight.detach())


def test_a_budget_that_is_too_small(tmp_path):
    model = made(Llama, hidden=128)
    out = packed(model, tmp_path)
    other = without_data(Llama, {"hidden": 128})
    with pytest.raises(tpde.BudgetError) as refused:
        tpde.load_into(other, out, 20_000, **CPU)
    runtime = tpde.runtime.of(other)
    runtime.set_vram(refused.value.smallest, reserve=0)
    assert_same_bits(other(tokens()).detach(), model(tokens()).detach())


def test_where_transformers_is_missing(tmp_path, monkeypatch):
    out = packed(made(Llama, hidden=128), tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(tpde.UnsupportedError, match="pip install transformers"):
        tpde.load(out, device="cpu")


# ---- transformers ----------------------------------------------------------------------

SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 160}
LLAMA = SIZES | {"intermediate_size": 192, "num_key_value_heads": 2, "max_position_embeddings": 64}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def config(transformers, name: str):
    if name == "gpt2":
        return transformers.GPT2Config(n_embd=128, n_layer=2, n_head=4, vocab_size=160, n_positions=64, **IDS)
    if name == "t5":
        sizes = {"d_model": 128, "d_kv": 32, "d_ff": 192, "num_layers": 2, "num_heads": 4, "vocab_size": 160}
        return transformers.T5Config(**sizes, **IDS, decoder_start_token_id=0)
    kind = transformers.LlamaConfig if name == "llama" else transformers.Qwen2Config
    return kind(**LLAMA, **IDS, tie_word_embeddings=name == "qwen")


@pytest.fixture(scope="module")
def resident(tmp_path_factory):
    """Makes models of transformers on disk, once each: name -> (folder, the model that from_pretrained gives)."""
    transformers = pytest.importorskip("transformers")
    found = {}

    def make(name: str, dtype=torch.bfloat16):
        if (name, dtype) not in found:
            folder = tmp_path_factory.mktemp(name)
            torch.manual_seed(0)
            auto = transformers.AutoModelForSeq2SeqLM if name == "t5" else transformers.AutoModelForCausalLM
            model = auto.from_config(config(transformers, name)).to(dtype)
            if model.generation_config is not None:
                model.generation_config.max_length = 17
            model.save_pretrained(folder)
            (folder / "tokenizer.json").write_text('{"version": "1.0"}')
            found[name, dtype] = folder, auto.from_pretrained(folder, dtype=dtype).eval()
        return found[name, dtype]

    return make


def inputs(name: str, batch: int = 2):
    ids = torch.randint(3, 160, (batch, 9), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids} | ({"decoder_input_ids": ids[:, :4]} if name == "t5" else {})


@pytest.mark.parametrize("name", ["llama", "qwen", "gpt2", "t5"])
@pytest.mark.parametrize("base", ["int4", "none"])
def test_transformers(resident, tmp_path, name, base):
    folder, model = resident(name)
    tpde.compress(folder, tmp_path / "out", base=base, progress=False)
    loaded = tpde.load(tmp_path / "out", **CPU)
    assert type(loaded) is type(model) and not loaded.training and loaded.dtype is torch.bfloat16
    ours, theirs = loaded.config.to_dict(), model.config.to_dict()
    assert {**ours, "_name_or_path": ""} == {**theirs, "_name_or_path": ""}
    assert loaded.generation_config.max_length == 17
    assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))
    runtime = tpde.runtime.of(loaded)
    with torch.no_grad():
        expected = [model(**inputs(name, batch)).logits for batch in (1, 8)]
        for share in (1.0, 0.5, 0.0):
            at(runtime, share)
            for batch, logits in zip((1, 8), expected, strict=True):
                assert_same_bits(loaded(**inputs(name, batch)).logits, logits)
        for _ in range(2):
            loaded(**inputs(name))
        assert runtime.measured().copied_bytes == runtime.plan.streamed_bytes > 0
        options = {"max_new_tokens": 6, "do_sample": False}
        assert loaded.generate(**inputs(name), **options).tolist() == model.generate(**inputs(name), **options).tolist()
    # The folder stands for the model in every other respect, too.
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_dtypes(resident, tmp_path, dtype):
    folder, model = resident("llama", dtype)
    tpde.compress(folder, tmp_path / "out", base="int3", progress=False)
    loaded = tpde.load(tmp_path / "out", "1GiB", **CPU)
    assert loaded.dtype is dtype
    with torch.no_grad():
        assert_same_bits(loaded(**inputs("llama")).logits, model(**inputs("llama")).logits)


def test_what_transformers_keeps_in_float32(resident, tmp_path):
    """wo of T5, in float16: its forward computes in the dtype of its weight."""
    folder, model = resident("t5", torch.float16)
    wide = {name for name, parameter in model.named_parameters() if parameter.dtype is torch.float32}
    if not wide:
        pytest.skip("this transformers keeps nothing in float32")
    tpde.compress(folder, tmp_path / "out", progress=False)
    loaded = tpde.load(tmp_path / "out", "1GiB", **CPU)
    assert wide == {n for n, p in loaded.named_parameters() if p.dtype is torch.float32}
    with torch.no_grad():
        assert_same_bits(loaded(**inputs("t5")).logits, model(**inputs("t5")).logits)


def test_names_with_and_without_the_prefix(resident, tmp_path):
    """Files on the hub often have the names of the inner model."""
    folder, model = resident("gpt2")
    state = load_file(folder / "model.safetensors")
    other = tmp_path / "model"
    other.mkdir()
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    save_file(renamed | {"h.0.attn.bias": torch.ones(4, 4)}, other / "model.safetensors", metadata={"format": "pt"})
    (other / "config.json").write_bytes((folder / "config.json").read_bytes())
    tpde.compress(other, tmp_path / "out", progress=False)
    loaded = tpde.load(tmp_path / "out", **CPU)
    with torch.no_grad():
        assert_same_bits(loaded(**inputs("gpt2")).logits, model(**inputs("gpt2")).logits)


def test_saving_a_loaded_model(resident, tmp_path):
    folder, model = resident("llama")
    tpde.compress(folder, tmp_path / "out", progress=False)
    loaded = tpde.load(tmp_path / "out", **CPU)
    with pytest.raises(tpde.UnsupportedError, match=r"Runtime\.unload\(\)"):
        loaded.save_pretrained(tmp_path / "saved")
    torch.save(loaded.state_dict(), tmp_path / "state.pt")
    tpde.runtime.of(loaded).unload()
    loaded.save_pretrained(tmp_path / "saved")
    ours, theirs = torch.load(tmp_path / "state.pt"), load_file(tmp_path / "saved" / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert_same_bits(ours[name], tensor)
        assert_same_bits(theirs[name], tensor)


def test_what_load_refuses(resident, tmp_path):
    folder, _ = resident("llama")
    tpde.compress(folder, tmp_path / "out", progress=False)
    path = tmp_path / "out" / "config.json"
    text = path.read_text()
    for change, error, match in (
        (text.replace("LlamaForCausalLM", "LamaForCausalLM"), tpde.UnsupportedError, "no class LamaForCausalLM"),
        (re.sub("^{", '{"quantization_config": {"bits": 4},', text), tpde.UnsupportedError, "quantization_config"),
        (re.sub("^{", '{"auto_map": {"AutoModel": "x.Y"},', text), tpde.UnsupportedError, "model_class"),
        (text.replace('"llama"', '"lama"'), tpde.UnsupportedError, r"config\.json: transformers .* cannot .*`lama`"),
        ("{}", tpde.UnsupportedError, r"config\.json: transformers .* cannot .*model_type"),
        (text[:-9], tpde.CorruptError, r"config\.json: expected JSON: "),
        ("[]", tpde.CorruptError, r"config\.json: expected a JSON object, got a list"),
        (None, tpde.NotFoundError, r"config\.json.*load_into"),
    ):
        if change is None:
            path.unlink()
        else:
            path.write_text(change)
        with pytest.raises(error, match=match):
            tpde.load(tmp_path / "out", device="cpu")


def test_a_class_that_is_given(resident, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder, model = resident("llama")
    tpde.compress(folder, tmp_path / "out", progress=False)
    with pytest.warns(UserWarning, match=r"lacks lm_head\.weight"):
        loaded = tpde.load(tmp_path / "out", model_class=transformers.LlamaModel, **CPU)
    with torch.no_grad():
        got = loaded(**inputs("llama")).last_hidden_state
        assert_same_bits(got, model.model(**inputs("llama")).last_hidden_state)
    loaded = tpde.load(tmp_path / "out", model_class=transformers.AutoModelForCausalLM, **CPU)
    assert type(loaded) is transformers.LlamaForCausalLM
    for bad in ("LlamaModel", nn.Linear):
        with pytest.raises(tpde.ArgumentError, match="expected a class of transformers"):
            tpde.load(tmp_path / "out", model_class=bad, **CPU)


def test_tensors_beside_the_model_are_left_out(tmp_path):
    model = made(Llama, hidden=128)
    saved(model, tmp_path / "model")
    (tmp_path / "model" / "extra").mkdir()
    save_file({"x": torch.zeros(3)}, tmp_path / "model" / "extra" / "more.safetensors")
    tpde.compress(tmp_path / "model", tmp_path / "out", progress=False)
    with _load.opened(tmp_path / "out") as opened:
        assert any(":" in name for name in opened.rows)
    other = without_data(Llama, {"hidden": 128})
    tpde.load_into(other, tmp_path / "out", **CPU)
    assert_same_bits(other(tokens()).detach(), model(tokens()).detach())
