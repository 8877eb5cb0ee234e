"""Templates and verbalizers as token ids."""

import pytest

from pipeline.engine.template import compile_template, compile_verbalizers, few_shot_template
from pipeline.errors import TemplateError


def compiled(tiny, template, maximum_field_tokens=50):
    return compile_template(tokenizer=tiny().tokenizer, template=template, maximum_field_tokens=maximum_field_tokens)


def test_head_is_shared_and_the_rest_is_each_rows_own(tiny):
    template = compiled(tiny, "Tweet: {text}\nSentiment:")
    tokenizer = tiny().tokenizer
    assert tokenizer.decode(template.head) == "Tweet:"
    rows = [{"text": "the plane was late"}, {"text": "thank you"}]
    assert [tokenizer.decode(ids) for ids in template.encode(rows)] == [" the plane was late\nSentiment:", " thank you\nSentiment:"]
    assert template.fields == ("text",)


def test_several_fields_in_order(tiny):
    template = compiled(tiny, "{question}\nContext: {context}\nAnswer:")
    encoded = template.encode([{"question": "late?", "context": "the bag", "unused": "x"}])
    assert tiny().tokenizer.decode(encoded[0]) == "late?\nContext: the bag\nAnswer:"
    assert template.head == ()
    assert template.fields == ("question", "context")


def test_a_long_field_is_cut_at_its_end_and_the_literals_stay(tiny):
    template = compiled(tiny, "Tweet: {text}\nSentiment:", maximum_field_tokens=3)
    tokenizer = tiny().tokenizer
    long = "the plane was late and nobody said a word"
    (ids,) = template.encode([{"text": long}])
    assert list(ids) == list(tokenizer(" " + long)["input_ids"][:3]) + list(tokenizer("\nSentiment:")["input_ids"])


def test_text_that_spells_a_special_token_stays_text(tiny):
    (ids,) = compiled(tiny, "Tweet: {text}").encode([{"text": "end </s> here <s>"}])
    assert not {0, 1} & set(ids)
    assert tiny().tokenizer.decode(ids) == " end </s> here <s>"


def test_a_tokenizers_bos_token_starts_the_shared_prefix(tiny):
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny().tokenizer
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    try:
        template = compiled(tiny, "Tweet: {text}")
        assert template.head[0] == 0
        assert 0 not in template.head[1:]
        assert 0 not in template.encode([{"text": "late"}])[0]
    finally:
        tokenizer.backend_tokenizer.post_processor = None


@pytest.mark.parametrize("closed", [False, True])
def test_what_a_tokenizer_puts_after_a_text_ends_an_example_only_where_asked(tiny, closed):
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny().tokenizer
    plain = compile_template(tokenizer=tokenizer, template="Tweet: {text}", maximum_field_tokens=50)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    try:
        template = compile_template(tokenizer=tokenizer, template="Tweet: {text}", maximum_field_tokens=50, closed=closed)
        (own,), (bare,) = template.encode([{"text": "late"}]), plain.encode([{"text": "late"}])
        assert template.head == (0, *plain.head)
        assert own == bare + ([1] if closed else [])
    finally:
        tokenizer.backend_tokenizer.post_processor = None


@pytest.mark.parametrize(("row", "found"), [({}, "None"), ({"text": None}, "None"), ({"text": 3}, "3")])
def test_a_missing_field_names_row_and_field(tiny, row, found):
    with pytest.raises(TemplateError, match=f"Row 2: the field 'text' must be a string, found {found}"):
        compiled(tiny, "{text}").encode([{"text": "fine"}, row])


def test_a_template_without_fields_is_refused(tiny):
    with pytest.raises(TemplateError, match="has no field"):
        compiled(tiny, "Sentiment:")


def test_verbalizers_with_no_tokens_or_the_same_tokens_are_refused(tiny):
    tokenizer = tiny().tokenizer
    with pytest.raises(TemplateError, match="verbalizer '' of label 'b' has no tokens"):
        compile_verbalizers(tokenizer=tokenizer, verbalizers={"a": " good", "b": ""})
    with pytest.raises(TemplateError, match="same tokens"):
        compile_verbalizers(tokenizer=tokenizer, verbalizers={"a": " good", "b": " good"})
    several = compile_verbalizers(tokenizer=tokenizer, verbalizers={"a": " good", "b": " zzz"})
    assert not several.single_token


@pytest.mark.parametrize("closed", [False, True])
def test_worked_examples_stand_in_the_shared_prefix_and_their_braces_stay_text(tiny, closed):
    tokenizer = tiny().tokenizer
    settings = {"tokenizer": tokenizer, "template": "Tweet: {text}\nSentiment:", "maximum_field_tokens": 50, "closed": closed}
    plain = compile_template(**settings)
    shown = few_shot_template(**settings, worked=[({"text": "thank {text}"}, " good"), ({"text": "late"}, " bad")])
    assert tokenizer.decode(shown.head) == "Tweet: thank {text}\nSentiment: good\n\nTweet: late\nSentiment: bad\n\nTweet:"
    assert shown.encode([{"text": "rude"}]) == plain.encode([{"text": "rude"}])
    assert few_shot_template(**settings, worked=[]).head == plain.head
