"""Teacher forcing against PEFT's forward with labels, and decoding against transformers' own generate and against plain forwards."""

from dataclasses import replace

import peft
import pytest
import torch

from pipeline.engine import generation
from pipeline.engine.batching import Example, training_order
from pipeline.engine.generation import DecodingSettings, Generation, GenerationExample, collate_targets, decode_beams, decode_greedy
from pipeline.engine.initialisation import Initialisation, initial_embeddings, key_values_of
from pipeline.engine.learners import SharedPrefixLearner
from pipeline.engine.methods import MethodSettings, build_method
from pipeline.engine.optimisation import OptimiserSettings
from pipeline.engine.shared_prefix import encode_prefixes
from pipeline.engine.soft_prompt import SoftPrompt
from pipeline.engine.training import TrainingSettings, TrialSettings, train
from pipeline.errors import TemplateError

FAMILIES = ["llama", "gpt2", "qwen2", "gpt_neox"]
WINDOWED = ["mistral_sliding", "gemma3"]
HEAD = (20, 21)
EXAMPLES = [
    GenerationExample.of(prompt_ids=prompt, target_ids=target)
    for prompt, target in [([30, 31, 32, 33], [60, 61, 1]), ([40], [70, 71, 72, 73, 74, 75, 1]), ([50, 51], [1]), ([52, 53, 54], [80, 1])]
]
# Prompts of many lengths, every other one behind the second, shorter prefix.
PROMPTS = [torch.randint(0, 320, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (1, 4, 9, 2, 6, 12)]
ROWS = [0, 1] * 3
# Many end tokens, so that random models end some of their texts.
SETTINGS = DecodingSettings(maximum_new_tokens=8, end_tokens=tuple(range(0, 320, 11)))


def soft_prompts(base):
    """Two soft prompts of different lengths."""
    generator = torch.Generator().manual_seed(0)
    return [SoftPrompt(base.vocabulary_embeddings()[torch.randint(0, 320, (n,), generator=generator)].clone()) for n in (5, 3)]


def prefixes(base):
    """The keys and values of both, HEAD included."""
    with torch.no_grad():
        return encode_prefixes(base, soft_prompts(base), HEAD)


def whole_prompt(base, prompt, row):
    """Everything in front of the text as embeddings, [1, S+T, H]."""
    return torch.cat([soft_prompts(base)[row].values, base.model.get_input_embeddings()(torch.tensor([*HEAD, *prompt]))])[None]


def generate(base, prompt, row, **options):
    """transformers' own text for one prompt."""
    embeddings = whole_prompt(base, prompt, row)
    return base.model.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
        do_sample=False,
        max_new_tokens=SETTINGS.maximum_new_tokens,
        eos_token_id=list(SETTINGS.end_tokens),
        pad_token_id=SETTINGS.end_tokens[0],
        **options,
    )[0].tolist()


def without_cache(base, prompt, row):
    """Greedy text for one prompt by plain forward passes over everything, again for each token."""
    embeddings, text = whole_prompt(base, prompt, row), []
    while len(text) < SETTINGS.maximum_new_tokens and not (text and text[-1] in SETTINGS.end_tokens):
        with torch.no_grad():
            text.append(int(base.model(inputs_embeds=embeddings, use_cache=False).logits[0, -1].argmax()))
            embeddings = torch.cat([embeddings, base.model.get_input_embeddings()(torch.tensor([[text[-1]]]))], dim=1)
    return text


@pytest.fixture(autouse=True)
def _undo_peft(tiny):
    """get_peft_model marks the base model's parameters; put them back for the next test."""
    yield
    for family in FAMILIES:
        tiny(family).model.requires_grad_(False)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_equal_those_of_pefts_forward_with_labels(tiny, family):
    base = tiny(family)
    values = soft_prompts(base)[0].values
    ours = values.clone().requires_grad_(True)
    losses = Generation().losses(base, encode_prefixes(base, [SoftPrompt(ours)], HEAD), [0] * len(EXAMPLES), EXAMPLES)
    losses.sum().backward()

    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(values), token_dim=base.hidden_size)
    model = peft.get_peft_model(base.model, config).eval()
    theirs = model.prompt_encoder["default"].embedding.weight
    theirs.data.copy_(values)
    for loss, example in zip(losses.tolist(), EXAMPLES, strict=True):
        ids = torch.tensor([[*HEAD, *example.prompt_ids, *example.target_ids]])
        labels = ids.clone()
        labels[:, : -len(example.target_ids)] = -100
        expected = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        expected.backward()
        assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(theirs.grad.norm()) > 1e-4, "a vanishing gradient would prove nothing"
    assert float((ours.grad - theirs.grad).norm() / theirs.grad.norm()) <= 1e-5


def test_only_target_positions_reach_the_head_a_few_at_a_time_with_the_same_gradient(tiny, monkeypatch):
    base = tiny()
    tokens = sum(len(example.target_ids) for example in EXAMPLES)

    def run():
        values = soft_prompts(base)[0].values.requires_grad_(True)
        losses = Generation().losses(base, encode_prefixes(base, [SoftPrompt(values)], HEAD), [0] * len(EXAMPLES), EXAMPLES)
        seen_forward = list(seen)
        losses.sum().backward()
        return losses.detach(), values.grad, seen_forward

    seen: list[int] = []
    handle = base.model.get_output_embeddings().register_forward_hook(lambda module, args, output: seen.append(output.shape[:-1].numel()))
    try:
        losses, gradient, rows = run()
        assert rows == [tokens]
        seen.clear()
        monkeypatch.setattr(generation, "TOKENS_AT_ONCE", 5)
        chunked_losses, chunked_gradient, rows = run()
    finally:
        handle.remove()
    assert len(rows) > 1
    assert max(rows) == 5
    assert sum(rows) == tokens
    torch.testing.assert_close(chunked_losses, losses, rtol=1e-6, atol=1e-6)
    assert float((chunked_gradient - gradient).norm() / gradient.norm()) <= 1e-5


def test_loss_depends_neither_on_batch_mates_nor_on_padding(tiny):
    base = tiny()
    prefix = prefixes(base)
    rows = [0, 1, 1, 0]
    with torch.no_grad():
        together = Generation().losses(base, prefix, rows, EXAMPLES)
        alone = [Generation().losses(base, prefix, [row], [example])[0] for row, example in zip(rows, EXAMPLES, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-5, atol=1e-5)


def test_a_packed_row_gives_the_losses_and_gradients_of_padded_rows(tiny):
    base = tiny()

    def run(packed):
        values = [one.values.clone().requires_grad_(True) for one in soft_prompts(base)]
        prefix = encode_prefixes(base, [SoftPrompt(one) for one in values], HEAD)
        losses = Generation().losses(base, replace(prefix, packed=packed), [0, 1, 1, 0], EXAMPLES)
        losses.sum().backward()
        return losses.detach(), torch.cat([one.grad for one in values])

    (losses, gradient), (packed_losses, packed_gradient) = run(False), run(True)
    torch.testing.assert_close(packed_losses, losses, rtol=1e-5, atol=1e-5)
    assert float((packed_gradient - gradient).norm() / gradient.norm()) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES + WINDOWED)
def test_greedy_text_equals_transformers_generate_and_plain_forwards(tiny, family):
    base = tiny(family)
    expected = [generate(base, prompt, row) for prompt, row in zip(PROMPTS, ROWS, strict=True)]
    assert len({len(text) for text in expected}) > 1, "texts of one length would not show that rows end by themselves"
    assert [without_cache(base, prompt, row) for prompt, row in zip(PROMPTS, ROWS, strict=True)] == expected
    prefix = prefixes(base)
    assert decode_greedy(base=base, prefix=prefix, prompts=PROMPTS, rows=ROWS, settings=SETTINGS) == expected
    for prompt, row, text in zip(PROMPTS, ROWS, expected, strict=True):
        assert decode_greedy(base=base, prefix=prefix, prompts=[prompt], rows=[row], settings=SETTINGS) == [text]


@pytest.mark.parametrize(("family", "length_penalty"), [*((family, 1.0) for family in FAMILIES + WINDOWED), ("llama", 0.0), ("llama", 2.0)])
def test_beam_search_equals_transformers_generate(tiny, family, length_penalty):
    base = tiny(family)
    expected = [generate(base, prompt, row, num_beams=3, length_penalty=length_penalty) for prompt, row in zip(PROMPTS, ROWS, strict=True)]
    assert expected != [generate(base, prompt, row) for prompt, row in zip(PROMPTS, ROWS, strict=True)]
    options = {"base": base, "prefix": prefixes(base), "settings": SETTINGS, "num_beams": 3, "length_penalty": length_penalty}
    assert decode_beams(prompts=PROMPTS, rows=ROWS, **options) == expected
    assert decode_beams(prompts=PROMPTS[1:2], rows=ROWS[1:2], **options) == expected[1:2]


@pytest.mark.parametrize("decode", [decode_greedy, lambda **options: decode_beams(num_beams=3, **options)])
def test_a_key_value_prefix_and_no_prefix_at_all_decode_like_their_embeddings(tiny, decode):
    base = tiny()
    soft_prompt = soft_prompts(base)[0]
    flat = SoftPrompt(key_values_of(base, soft_prompt.values), "key_values")
    with torch.no_grad():
        embeddings, key_values, nothing = (encode_prefixes(base, [one], ()) for one in (soft_prompt, flat, None))
    decoded = {
        name: decode(base=base, prefix=prefix, prompts=prompts, settings=SETTINGS)
        for name, prefix, prompts in [
            ("embeddings", embeddings, PROMPTS),
            ("key_values", key_values, PROMPTS),
            ("nothing", nothing, [[*HEAD, *prompt] for prompt in PROMPTS]),
        ]
    }
    assert decoded["key_values"] == decoded["embeddings"]
    with torch.no_grad():
        head_alone = encode_prefixes(base, [None], HEAD)
    assert decoded["nothing"] == decode(base=base, prefix=head_alone, prompts=PROMPTS, settings=SETTINGS)
    assert decoded["nothing"] != decoded["embeddings"]


def test_finished_rows_drop_out_of_the_batch(tiny):
    base = tiny()
    seen: list[int] = []
    handle = base.model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True)
    try:
        texts = decode_greedy(base=base, prefix=prefixes(base), prompts=PROMPTS, rows=ROWS, settings=SETTINGS)
    finally:
        handle.remove()
    assert sum(seen) == sum(len(text) for text in texts)
    assert seen[0] == len(PROMPTS) > seen[-1]


def test_small_batches_give_the_texts_in_the_order_of_the_prompts(tiny):
    base = tiny()
    together = decode_greedy(base=base, prefix=prefixes(base), prompts=PROMPTS, rows=ROWS, settings=SETTINGS)
    small = DecodingSettings(maximum_new_tokens=8, end_tokens=SETTINGS.end_tokens, batch_size=4)
    done: list[int] = []
    assert decode_greedy(base=base, prefix=prefixes(base), prompts=PROMPTS, rows=ROWS, settings=small, advance=done.append) == together
    assert done == [4, 2]


def test_the_base_models_own_generation_config_is_left_aside(tiny, monkeypatch):
    base = tiny()
    options = {"base": base, "prefix": prefixes(base), "prompts": PROMPTS, "rows": ROWS, "settings": SETTINGS}
    before = decode_greedy(**options), decode_beams(num_beams=3, **options)
    monkeypatch.setattr(base.model.generation_config, "suppress_tokens", list(range(40, 320)))
    assert generate(base, PROMPTS[2], 0, num_beams=3) != before[1][2], "the setting must change something to show that it does not"
    assert (decode_greedy(**options), decode_beams(num_beams=3, **options)) == before
    assert base.model.generation_config.suppress_tokens == list(range(40, 320))


def test_metrics_count_right_tokens_and_exact_match_is_what_greedy_decoding_finds(tiny):
    base = tiny()
    prefix = prefixes(base)
    texts = decode_greedy(base=base, prefix=prefix, prompts=PROMPTS, settings=SETTINGS)
    # The first half as decoded; the others with a wrong first or a wrong last token.
    wrong = [
        text if at < 3 else [(text[0] + 1) % 320, *text[1:]] if at % 2 else [*text[:-1], (text[-1] + 1) % 320]
        for at, text in enumerate(texts)
    ]
    examples = [GenerationExample.of(prompt_ids=prompt, target_ids=target) for prompt, target in zip(PROMPTS, wrong, strict=True)]
    objective = Generation()
    outputs = objective.outputs(base, prefix, examples, 5)
    result = objective.result(outputs[:, 0], examples)

    right, nats = [], []
    for example in examples:
        embeddings = whole_prompt(base, [*example.prompt_ids, *example.target_ids], 0)
        with torch.no_grad():
            logits = base.model(inputs_embeds=embeddings).logits[0, -len(example.target_ids) - 1 : -1]
        target = torch.tensor(example.target_ids)
        right += (logits.argmax(-1) == target).tolist()
        nats.append(float(-logits.log_softmax(-1)[torch.arange(len(target)), target].mean()))
    assert result.metrics == {"token_accuracy": pytest.approx(sum(right) / len(right)), "exact_match": 0.5}
    assert result.loss == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert result.rows == 6
    # The second prefix in the same mixed batches is what it is alone.
    with torch.no_grad():
        second = encode_prefixes(base, soft_prompts(base)[1:], HEAD)
    torch.testing.assert_close(outputs[:, 1], objective.outputs(base, second, examples, 8)[:, 0], rtol=1e-5, atol=1e-5)


def test_an_examples_tokens_are_the_row_that_is_run():
    example = GenerationExample.of(prompt_ids=[3, 4, 5], target_ids=[6, 7, 1])
    assert (list(example.token_ids), list(example.prompt_ids), list(example.target_ids)) == ([3, 4, 5, 6, 7], [3, 4, 5], [6, 7, 1])
    batch = collate_targets([example, GenerationExample.of(prompt_ids=[9], target_ids=[1])], torch.device("cpu"))
    assert batch.input_ids.tolist() == [[3, 4, 5, 6, 7], [9, 0, 0, 0, 0]]
    assert list(zip(batch.row.tolist(), batch.column.tolist(), batch.target_ids.tolist(), strict=True)) == [
        (0, 2, 6),
        (0, 3, 7),
        (0, 4, 1),
        (1, 0, 1),
    ]


def test_batches_are_of_similar_length_with_prompt_and_target_together():
    examples = [GenerationExample.of(prompt_ids=[2] * (1 + at % 16), target_ids=[3] * (17 - at % 16)) for at in range(32)]
    examples += [GenerationExample.of(prompt_ids=[2], target_ids=[3]) for _ in range(32)]
    order = training_order(examples, batch_size=8, seed=0)
    assert {len({len(example.token_ids) for example in next(order)}) for _ in range(8)} == {1}


def test_a_prompt_without_tokens_or_longer_than_the_context_is_an_error(tiny):
    base = tiny()
    options = {"base": base, "prefix": prefixes(base), "settings": SETTINGS}
    with pytest.raises(TemplateError, match=r"Prompt 2 has no tokens behind the shared prefix"):
        decode_greedy(prompts=[[5], []], **options)
    with pytest.raises(
        TemplateError, match=r"Prompt 1 needs 129 tokens: 7 of its prefix, 114 of its own and 8 to generate\. tiny/llama attends to 128"
    ):
        decode_beams(prompts=[[5] * 114], num_beams=2, **options)
    with pytest.raises(TemplateError, match=r"0 tokens behind the shared prefix and 2 to generate"):
        GenerationExample.of(prompt_ids=[], target_ids=[4, 1])
    with pytest.raises(TypeError, match="1 of 2 examples have no target"):
        Generation().losses(base, prefixes(base), [0, 0], [EXAMPLES[0], Example([4], 0)])


def test_training_learns_to_copy_a_marker_and_changes_only_the_soft_prompt(tiny):
    base = tiny()
    # The prompt's first token is to be written again, then the end token; what stands between differs in length.
    examples = [
        GenerationExample.of(prompt_ids=[marker, *[25] * (at % 2), 26], target_ids=[marker, 1]) for at in range(8) for marker in (93, 166)
    ]
    embeddings = initial_embeddings(
        base=base, num_virtual_tokens=16, initialisation=Initialisation(kind="text", text="the plane was late"), seed=0
    )
    module = build_method(base=base, settings=MethodSettings(name="prompt_tuning"), embeddings=embeddings, seed=0)
    learner = SharedPrefixLearner(base=base, head=(20,), objective=Generation(), modules=[module], rows_at_once=6)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    start = learner.soft_prompt(0).values
    records: list[dict] = []
    result = train(
        learner=learner,
        trials=[
            TrialSettings(
                name="copy", seed=0, optimiser=OptimiserSettings(name="adamw", learning_rate=0.1, maximum_steps=100, warmup_ratio=0.1)
            )
        ],
        train=examples,
        validation=examples,
        settings=TrainingSettings(
            maximum_gradient_norm=1.0, batch_size=8, maximum_steps=100, evaluate_every=50, early_stopping_patience=9, metric="exact_match"
        ),
        on_record=records.append,
    )
    assert result.best.metrics == {"token_accuracy": 1.0, "exact_match": 1.0}
    assert result.best.loss < 0.5 * records[0]["loss"]
    prompts = [example.prompt_ids for example in examples]
    settings = DecodingSettings(maximum_new_tokens=4, end_tokens=(1,))
    texts = decode_greedy(base=base, prefix=learner.prefix([0]), prompts=prompts, settings=settings)
    assert texts == [list(example.target_ids) for example in examples]

    after = base.model.state_dict()
    assert len(before) == len(after) > 10
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in base.model.parameters())
    assert not torch.equal(start, learner.soft_prompt(0).values)
