"""Streamed models of transformers against resident ones, on bits, where transformers is installed."""

from __future__ import annotations

import copy

import pytest
import torch

import tpde
from support import assert_same_bits
from tpde._residency import smallest_budget

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96}
LLAMA = SIZES | {"intermediate_size": 128, "num_key_value_heads": 2, "max_position_embeddings": 64}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**LLAMA),
    "qwen": lambda: transformers.Qwen2Config(**LLAMA, tie_word_embeddings=True),
    "gpt2": lambda: transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=96, n_positions=64),
    "t5": lambda: transformers.T5Config(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=96),
}


def made(name: str):
    torch.manual_seed(0)
    config = CONFIGS[name]()
    auto = transformers.AutoModelForSeq2SeqLM if name == "t5" else transformers.AutoModelForCausalLM
    return auto.from_config(config).bfloat16().eval()


def offloaded(model, share=0.0):
    runtime = tpde.offload(model, device="cpu", reserve=0, workers=1)
    plan = runtime.plan
    smallest = smallest_budget(plan.layers, plan.fixed_bytes)
    runtime.set_vram(smallest + int(share * (runtime.vram - smallest)), reserve=0)
    return runtime


def inputs(name: str, batch: int = 2):
    ids = torch.randint(1, 96, (batch, 9), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids} | ({"decoder_input_ids": ids[:, :4]} if name == "t5" else {})


@pytest.mark.parametrize("share", [0.0, 0.6])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits(name, share):
    model = made(name)
    with torch.no_grad():
        expected = [model(**inputs(name, batch)).logits for batch in (1, 8)]
        runtime = offloaded(model, share)
        assert len(runtime.plan.layers) >= 9
        for _ in range(2):
            for batch, logits in zip((1, 8), expected, strict=True):
                assert_same_bits(model(**inputs(name, batch)).logits, logits)
    assert model.device.type == "cpu" and model.dtype is torch.bfloat16


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_generated_tokens(name):
    model = made(name)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(**inputs(name), **options)
    runtime = offloaded(model)
    assert model.generate(**inputs(name), **options).tolist() == expected.tolist()
    assert runtime.measured().order_changes <= 1
    torch.manual_seed(3)
    sampled = model.generate(**inputs(name), max_new_tokens=5, do_sample=True, pad_token_id=0)
    runtime.unload()
    torch.manual_seed(3)
    assert model.generate(**inputs(name), max_new_tokens=5, do_sample=True, pad_token_id=0).tolist() == sampled.tolist()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_lora_trains_as_on_the_resident_model(name):
    peft = pytest.importorskip("peft")
    targets = ["q_proj", "down_proj"] if name == "llama" else ["c_attn", "c_fc"]
    models = [made(name)]
    models.append(copy.deepcopy(models[0]))
    offloaded(models[1])
    results = []
    for model in models:
        torch.manual_seed(7)
        config = peft.LoraConfig(r=2, target_modules=targets, fan_in_fan_out=name == "gpt2", init_lora_weights=False)
        wrapped = peft.get_peft_model(model, config).train()
        wrapped.config.use_cache = False
        model.gradient_checkpointing_enable({"use_reentrant": False})
        ids = inputs(name)["input_ids"]
        trained = [p for p in wrapped.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1)
        for _ in range(2):
            torch.manual_seed(9)
            optimizer.zero_grad()
            wrapped(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
        results.append([p.detach() for p in trained])
    assert results[0]
    for mine, theirs in zip(*results, strict=True):
        assert_same_bits(mine, theirs)


def test_inside_a_model_that_accelerate_dispatched():
    accelerate = pytest.importorskip("accelerate")
    model = made("llama")
    with torch.no_grad():
        expected = model(**inputs("llama")).logits
        model = accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
        assert hasattr(model.model.layers[0].self_attn.q_proj, "_hf_hook")
        runtime = offloaded(model)
        before = runtime._engine().schedule.counts.uses
        assert_same_bits(model(**inputs("llama")).logits, expected)
        assert runtime._engine().schedule.counts.uses - before == len(runtime.plan.layers)
        runtime.unload()
        assert_same_bits(model(**inputs("llama")).logits, expected)
