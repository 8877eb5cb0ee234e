"""Written answers: what is trained on, where an answer ends, and the loss of a reference against a plain forward pass."""

from dataclasses import replace

import pytest
import torch

from pipeline.engine.generation import DecodingSettings, decode_beams
from pipeline.engine.soft_prompt import SoftPrompt
from pipeline.engine.template import compile_template
from pipeline.engine.writing import Writer, WritingSettings, end_token, generation_examples, make_writer, target_tokens
from pipeline.errors import BaseModelError, TemplateError

SETTINGS = WritingSettings(maximum_new_tokens=12, separator=" ", stop=("\n",))
ROWS = [{"text": "the plane was late"}, {"text": "thank you for the lovely flight"}, {"text": "six"}]
TARGETS = ["late", "great crew", "gate four at six"]


def writer_of(base, settings=SETTINGS):
    values = base.vocabulary_embeddings()[torch.randint(0, 300, (4,), generator=torch.Generator().manual_seed(3))].clone()
    template = compile_template(tokenizer=base.tokenizer, template="Tweet: {text}\nAnswer:", maximum_field_tokens=64)
    return make_writer(base, SoftPrompt(values), template.head, settings), template, values


def test_a_target_ends_with_the_end_token_unless_it_is_cut(tiny):
    base = tiny()
    whole, long = target_tokens(base, ["late", "late " * 30], SETTINGS)
    assert whole[-1] == end_token(base)
    assert base.tokenizer.decode(whole[:-1]) == " late"
    assert len(long) == 12
    assert end_token(base) not in long
    assert base.tokenizer.decode(long) == base.tokenizer.decode(
        base.tokenizer(" " + "late " * 30, add_special_tokens=False)["input_ids"][:12]
    )


def test_the_loss_of_a_reference_is_that_of_a_plain_forward_pass(tiny):
    base = tiny()
    writer, template, values = writer_of(base)
    examples = generation_examples(base, template, ROWS, TARGETS, SETTINGS)
    for found, example in zip(writer.losses(examples, batch_size=2), examples, strict=True):
        tokens = torch.tensor([*template.head, *example.prompt_ids, *example.target_ids])
        embeddings = torch.cat([values, base.model.get_input_embeddings()(tokens)])[None]
        with torch.no_grad():
            logits = base.model(inputs_embeds=embeddings).logits[0]
        predicting = logits[len(embeddings[0]) - len(example.target_ids) - 1 : -1]
        expected = torch.nn.functional.cross_entropy(predicting, torch.tensor(example.target_ids))
        assert found == pytest.approx(float(expected), abs=1e-5)


def test_one_answer_does_not_depend_on_the_others(tiny):
    writer, template, _ = writer_of(tiny())
    prompts = template.encode(ROWS)
    together = writer.write(prompts, batch_size=3)
    assert together == [writer.write([prompt], batch_size=1)[0] for prompt in prompts]
    assert all(1 <= answer.tokens <= 12 for answer in together)


def test_beams_are_asked_for_with_the_settings(tiny):
    base = tiny()
    writer, template, _ = writer_of(base)
    prompts = template.encode(ROWS)
    wide = Writer(base, writer.prefix, replace(SETTINGS, num_beams=4, length_penalty=0.5))
    ends = tuple(dict.fromkeys((end_token(base), *base.tokenizer("\n", add_special_tokens=False)["input_ids"])))
    decoding = DecodingSettings(maximum_new_tokens=12, end_tokens=ends, batch_size=3)
    expected = decode_beams(base=base, prefix=writer.prefix, prompts=prompts, settings=decoding, num_beams=4, length_penalty=0.5)
    assert wide._decode(prompts, 3, lambda rows: None) == expected
    assert writer._decode(prompts, 3, lambda rows: None) != expected


@pytest.mark.parametrize(
    ("decoded", "stop", "text", "ended"),
    [
        (" four\nTweet: next", ("\n",), "four", True),
        ("\nfour\nTweet", ("\n",), "four", True),  # a line break in front of the answer ends nothing
        (" four. Next. ", (". ",), "four", True),
        (" four at six ", ("\n",), "four at six", False),
        (" a STOP b END", ("END", "STOP"), "a", True),  # the first that comes
    ],
)
def test_an_answer_ends_before_the_first_stop_string(tiny, decoded, stop, text, ended):
    base = tiny()
    writer = Writer(base, None, replace(SETTINGS, stop=stop))
    ids = base.tokenizer(decoded, add_special_tokens=False)["input_ids"]
    answer = writer._answer(ids)
    assert (answer.text, answer.ended, answer.tokens) == (text, ended, len(ids))
    closed = writer._answer([*ids, end_token(base)])
    assert (closed.text, closed.ended) == (text, True)


def test_a_stop_string_of_one_token_ends_decoding(tiny):
    """What would be cut off is not decoded."""
    base = tiny()
    writer, template, _ = writer_of(base)
    prompts = template.encode(ROWS[:1])
    first = writer._decode(prompts, 1, lambda rows: None)[0][0]
    stop = base.tokenizer.decode([first])
    assert base.tokenizer(stop, add_special_tokens=False)["input_ids"] == [first]
    answer = Writer(base, writer.prefix, replace(SETTINGS, stop=(stop,))).write(prompts, batch_size=1)[0]
    assert (answer.tokens, answer.ended, answer.text) == (1, True, "")


def test_what_cannot_write_is_refused(tiny):
    with pytest.raises(BaseModelError, match=r"cannot write answers: it is an encoder_decoder.*methods\.md"):
        make_writer(tiny("t5"), None, (), SETTINGS)
    base = tiny()
    template = compile_template(tokenizer=base.tokenizer, template="{text}", maximum_field_tokens=64)
    with pytest.raises(TemplateError, match="0 tokens behind the shared prefix"):
        generation_examples(base, template, [{"text": ""}], ["late"], SETTINGS)
