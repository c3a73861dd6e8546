"""Self-speculation on the CPU, in float32: what a draft computes, and that output is the model's own."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import pytest
import torch

import tpde
from streaming import budget, engine_of, offloaded
from support import assert_same_bits
from tiny_models import GPT2, Llama, tokens
from tiny_models import made as tiny
from tpde._residency import Residency
from tpde._speculation import Length
from tpde._stream_draft import drafting, weight_of

transformers = pytest.importorskip("transformers", minversion="5.0")

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96}
LLAMA = SIZES | {"intermediate_size": 128, "num_key_value_heads": 2, "max_position_embeddings": 256}
ENDS = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**LLAMA, **ENDS),
    "qwen": lambda: transformers.Qwen2Config(**LLAMA, **ENDS, tie_word_embeddings=True),
    "gpt2": lambda: transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=96, n_positions=256, **ENDS),
}
NAMES = pytest.mark.parametrize("name", CONFIGS)


def made(name: str, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)  # so that drafts are not always right
    return model


def prompt(length: int = 9, seed: int = 1) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 96, (1, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


GREEDY = {"max_new_tokens": 40, "do_sample": False}


@NAMES
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_draft_computes_with_what_is_in_vram(name, share):
    model = made(name)
    expected = copy.deepcopy(model)
    runtime = offloaded(model, share)
    engine = engine_of(runtime)
    drafted_with = {}
    for number, layer in enumerate(engine.memory.layers):
        weight = weight_of(engine, number)
        is_whole = runtime.plan.residency[number] is Residency.WHOLE
        assert isinstance(weight, torch.Tensor) == is_whole
        drafted_with[layer.name] = weight if is_whole else weight.dequantize()
    with torch.no_grad():
        for module_name, weight in drafted_with.items():
            if module_name == "lm_head":  # its embedding, if it is tied, looks up rows of the model's own
                expected.lm_head.weight = torch.nn.Parameter(weight)
            else:
                expected.get_submodule(module_name).weight.copy_(weight)
    speculation = tpde.SelfSpeculation(model)
    before = engine.schedule.counts.uses, engine.schedule.counts.passes
    out = speculation.draft(**prompt())
    with torch.no_grad():
        assert_same_bits(out.logits, expected(**prompt()).logits)
    assert not out.logits.requires_grad
    assert before == (engine.schedule.counts.uses, engine.schedule.counts.passes)


@NAMES
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("graph", [False, True])  # on a CPU: a cache of fixed size
def test_greedy_tokens_are_those_of_the_model(name, share, graph):
    model = made(name)
    expected = model.generate(**prompt(), **GREEDY)
    runtime = offloaded(model, share)
    speculation = tpde.SelfSpeculation(model, graph=graph)
    engine = engine_of(runtime)
    before = engine.schedule.counts.uses
    for _ in range(2):
        assert speculation.generate(**prompt(), **GREEDY).tolist() == expected.tolist()
    counts = speculation.counts
    assert counts.accepted + counts.rounds >= 2 * 40 - 2 and 0 < counts.accepted <= counts.drafted
    assert counts.rounds < 2 * 40
    verified = engine.schedule.counts.uses - before
    assert verified <= (counts.rounds + 2) * len(runtime.plan.layers)
    assert runtime.measured().order_changes == 0
    assert f"{counts.accepted} of {counts.drafted}" in str(counts)
    if share == 1.0 and runtime.plan.count(Residency.WHOLE) == len(runtime.plan.layers):
        assert counts.accepted == counts.drafted


def test_caches_of_both_kinds_draft_the_same():
    model = made("llama")
    offloaded(model)
    counts = []
    for graph in (False, True):
        speculation = tpde.SelfSpeculation(model, graph=graph, tokens=5)
        speculation.generate(**prompt(), **GREEDY)
        counts.append(speculation.counts)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("tokens_a_round", [1, 3, 200])
def test_a_fixed_number_of_tokens(tokens_a_round):
    model = made("llama")
    expected = model.generate(**prompt(), **GREEDY)
    offloaded(model)
    speculation = tpde.SelfSpeculation(model, tokens=tokens_a_round)
    assert speculation.generate(**prompt(), **GREEDY).tolist() == expected.tolist()
    assert speculation.counts.drafted <= speculation.counts.rounds * tokens_a_round


def test_as_an_assistant_of_generate():
    model = made("llama")
    settings = copy.deepcopy(model.generation_config)
    expected = model.generate(**prompt(), **GREEDY)
    offloaded(model)
    speculation = tpde.SelfSpeculation(model)
    for _ in range(2):
        assert model.generate(**prompt(), **GREEDY, assistant_model=speculation.draft).tolist() == expected.tolist()
    assert speculation.counts.rounds > 0
    assert model.generation_config.to_dict() == settings.to_dict()
    assert [id(p) for p in speculation.draft.parameters()] == [id(p) for p in model.parameters()]
    assert isinstance(speculation.draft, type(model)) and type(model) is transformers.LlamaForCausalLM
    # A model of its own, too.
    assert speculation.draft.generate(**prompt(), **GREEDY).shape == expected.shape


def test_sampling():
    model = made("llama")
    offloaded(model)
    options = {"max_new_tokens": 30, "do_sample": True, "temperature": 0.8, "repetition_penalty": 1.2}
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(tpde.SelfSpeculation(model).generate(**prompt(), **options).tolist())
    assert results[0] == results[1]
    greedy = model.generate(**prompt(), **GREEDY)
    nearly = tpde.SelfSpeculation(model).generate(**prompt(), max_new_tokens=40, do_sample=True, top_k=1)
    assert nearly.tolist() == greedy.tolist()


def test_a_seed_gives_the_same_tokens_again():
    """Also of an object that has learnt in the meantime how many drafts are accepted."""
    model = made("llama")
    offloaded(model)
    speculation = tpde.SelfSpeculation(model)
    results = []
    for through in (speculation.generate, speculation.generate, model.generate, model.generate):
        torch.manual_seed(5)
        options = {"assistant_model": speculation.draft} if through == model.generate else {}
        results.append(through(**prompt(), max_new_tokens=30, do_sample=True, **options).tolist())
    assert results == results[:1] * 4


def test_sampled_tokens_have_the_distribution_of_the_model():
    model = made("llama")
    with torch.no_grad():
        best = model(**prompt()).logits[0, -1].topk(4)
    offloaded(model)
    speculation = tpde.SelfSpeculation(model, tokens=1)
    torch.manual_seed(0)
    options = {"do_sample": True, "max_new_tokens": 2, "temperature": 1.0, "top_k": 4}
    firsts = torch.tensor([speculation.generate(**prompt(), **options)[0, 9].item() for _ in range(120)])
    assert 0 < speculation.counts.accepted < speculation.counts.drafted == 120
    seen = torch.bincount(firsts, minlength=96)[best.indices] / 120
    assert float(seen.sum()) == pytest.approx(1)
    assert float((seen - best.values.softmax(-1)).abs().sum()) / 2 < 0.13  # total variation


@pytest.mark.parametrize("graph", [False, True])
def test_ends_of_sequences(graph):
    model = made("llama")
    plain = model.generate(**prompt(), **GREEDY)[0, 9:].tolist()
    offloaded(model)
    for at in (0, 3, 7, 20):
        stop = plain[at]
        expected = model.generate(**prompt(), **GREEDY, eos_token_id=[stop, 95])
        got = tpde.SelfSpeculation(model, tokens=6, graph=graph).generate(**prompt(), **GREEDY, eos_token_id=[stop, 95])
        assert got.tolist() == expected.tolist()


def test_prompts_one_after_the_other_and_another_budget():
    model = made("llama")
    expected = [model.generate(**prompt(7 + seed, seed), **GREEDY).tolist() for seed in range(3)]
    runtime = offloaded(model)
    smallest = runtime.vram
    speculation = tpde.SelfSpeculation(model)
    for seed in range(3):
        runtime.set_vram(smallest + seed * 20_000, reserve=0)
        got = model.generate(**prompt(7 + seed, seed), **GREEDY, assistant_model=speculation.draft)
        assert got.tolist() == expected[seed]


def test_padded_prompts_and_output_dictionaries():
    model = made("llama")
    padded = {k: torch.cat([torch.zeros_like(v[:, :3]), v], 1) for k, v in prompt().items()}
    expected = model.generate(**padded, **GREEDY)
    offloaded(model)
    speculation = tpde.SelfSpeculation(model)
    got = speculation.generate(**padded, **GREEDY, return_dict_in_generate=True, output_scores=True)
    assert got.sequences.tolist() == expected.tolist() and len(got.scores) == 40
    assert speculation.counts.drafted > 0


def test_inside_inference_mode():
    model = made("gpt2")
    expected = model.generate(**prompt(), **GREEDY)
    offloaded(model)
    speculation = tpde.SelfSpeculation(model, graph=True)
    for inference in (True, False, True):
        with torch.inference_mode(inference):
            got = model.generate(**prompt(), **GREEDY, assistant_model=speculation.draft)
            assert got.tolist() == expected.tolist()


def test_encoder_and_decoder():
    config = transformers.T5Config(
        d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=96, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    expected = model.generate(**prompt(), max_new_tokens=20, do_sample=False)
    offloaded(model)
    assert (
        tpde.SelfSpeculation(model).generate(**prompt(), max_new_tokens=20, do_sample=False).tolist()
        == expected.tolist()
    )


@pytest.mark.parametrize("graph", [False, True])
def test_drafts_after_an_interrupt_are_as_good_as_before(graph):
    """Whatever stops a draft in the middle leaves layers of its cache that hold different tokens."""
    model = made("llama")
    offloaded(model)
    speculation = tpde.SelfSpeculation(model, graph=graph, tokens=6)
    speculation.generate(**prompt(), **GREEDY)
    clean = speculation.counts
    calls = []

    def hook(*_) -> None:
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt

    handle = model.model.layers[0].mlp.up_proj.register_forward_hook(hook)
    with pytest.raises(KeyboardInterrupt):
        speculation.generate(**prompt(), **GREEDY)
    handle.remove()
    before = speculation.counts
    speculation.generate(**prompt(), **GREEDY)
    after = speculation.counts
    assert (after.rounds - before.rounds, after.accepted - before.accepted) == (clean.rounds, clean.accepted)


@pytest.mark.parametrize("graph", [False, True])
def test_memory_comes_back_with_the_last_reference(graph):
    model = made("llama")
    engine = weakref.ref(engine_of(offloaded(model)))
    speculation = tpde.SelfSpeculation(model, graph=graph)
    speculation.generate(**prompt(), **GREEDY)
    gc.collect()
    gc.disable()
    try:
        draft = speculation.draft
        del speculation, model
        assert draft.generate(**prompt(), **GREEDY).shape == (1, 49)
        del draft
        assert engine() is None
    finally:
        gc.enable()


def test_without_a_base_there_is_no_draft():
    model = made("llama")
    runtime = tpde.offload(model, base="none", device="cpu", reserve=0, workers=1)
    whole = runtime.vram
    runtime.set_vram(runtime.plan.peak_bytes - 20_000, reserve=0)
    assert runtime.plan.count(Residency.WHOLE) < len(runtime.plan.layers)
    with pytest.raises(tpde.UnsupportedError, match="no base to draft with"):
        tpde.SelfSpeculation(model)
    runtime.set_vram(whole, reserve=0)
    if runtime.plan.count(Residency.WHOLE) == len(runtime.plan.layers):
        tpde.SelfSpeculation(model)


def test_layers_that_are_too_small_for_a_base(tmp_path):
    """`tpde compress` gives them none; they draft with their weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA | {"hidden_size": 128, "vocab_size": 160}, **ENDS)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "model")
    tpde.compress(tmp_path / "model", tmp_path / "out", progress=False)
    expected = model.generate(**prompt(), **GREEDY)
    loaded = tpde.load(tmp_path / "out", device="cpu", reserve=0)
    runtime = tpde.runtime.of(loaded)
    runtime.set_vram(budget(runtime, 0.0), reserve=0)
    engine = engine_of(runtime)
    small = [n for n, layer in enumerate(engine.memory.layers) if layer.base is None]
    assert small and all(engine.memory.whole[n] is None for n in small)
    speculation = tpde.SelfSpeculation(loaded)
    for number in small:
        weight = loaded.get_submodule(engine.memory.layers[number].name).weight
        assert_same_bits(weight_of(engine, number), weight.rebuilt())
    assert speculation.generate(**prompt(), **GREEDY).tolist() == expected.tolist()
    runtime.set_vram("1GiB", reserve=0)
    assert not engine.small


def test_arguments_are_checked():
    model = made("llama")
    with pytest.raises(tpde.ArgumentError, match="not streamed"):
        tpde.SelfSpeculation(model)
    offloaded(model)
    with pytest.raises(tpde.ArgumentError, match="expected an nn"):
        tpde.SelfSpeculation(5)
    with pytest.raises(tpde.ArgumentError, match="is a draft"):
        tpde.SelfSpeculation(tpde.SelfSpeculation(model).draft)
    with pytest.raises(tpde.ArgumentError, match="inputs_embeds"):
        tpde.SelfSpeculation(model).generate(inputs_embeds=torch.zeros(1, 3, 64), **GREEDY)
    for bad in ({"tokens": 0}, {"tokens": 2.5}, {"most": 2000}, {"most": None}, {"cost": 0.0}):
        with pytest.raises(tpde.ArgumentError, match="expected"):
            tpde.SelfSpeculation(model, **bad)
    other = tiny(Llama)
    offloaded(other)
    speculation = tpde.SelfSpeculation(other)
    assert speculation.draft(tokens()).shape == other(tokens()).shape
    with pytest.raises(tpde.ArgumentError, match="no generate"):
        speculation.generate(tokens())


def test_threads_draft_and_verify_at_once():
    model = made("llama")
    with torch.no_grad():
        expected = model(**prompt()).logits
        offloaded(model)
        draft = tpde.SelfSpeculation(model).draft
        drafted = draft(**prompt()).logits
        assert not torch.equal(drafted, expected)
        wrong = []

        def work(model, logits) -> None:
            with torch.no_grad():
                for _ in range(20):
                    if not torch.equal(model(**prompt()).logits, logits):
                        wrong.append(model)

        threads = [threading.Thread(target=work, args=one) for one in [(model, expected), (draft, drafted)] * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


@pytest.mark.parametrize("kind", [Llama, GPT2])
def test_compiled_once_for_both(kind):
    model = tiny(kind)
    with torch.no_grad():
        expected = model(tokens())
        runtime = offloaded(model)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert_same_bits(compiled(tokens()), expected)
        with drafting(engine_of(runtime)):
            drafted = compiled(tokens())
        assert_same_bits(drafted, tpde.SelfSpeculation(model).draft(tokens()))
        assert not torch.equal(drafted, expected)
        assert_same_bits(compiled(tokens()), expected)


def test_how_many_tokens_pay():
    length = Length(None, 32, 0.05)
    first = length.next()
    for _ in range(30):
        length.learn(length.next(), length.next())
    assert first < length.next() and length.next() == 32
    for _ in range(30):
        length.learn(0, length.next())
    assert length.next() == 1
    for share, cost, least, most in [(0.9, 0.05, 7, 14), (0.9, 0.5, 1, 4), (0.99, 0.02, 32, 32)]:
        length = Length(None, 32, cost)
        length._accepted, length._judged = 1e6 * share, 1e6
        assert least <= length.next() <= most
