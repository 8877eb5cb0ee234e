"""Written answers: what a task with free-text targets trains on, and decoding behind a tuned or a hard prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.engine.base_model import BaseModel
from pipeline.engine.generation import DecodingSettings, Generation, GenerationExample, decode_beams, decode_greedy
from pipeline.engine.learners import halving
from pipeline.engine.prefix_cache import Prefix
from pipeline.engine.shared_prefix import disagreement, encode_prefixes
from pipeline.engine.soft_prompt import SoftPrompt
from pipeline.engine.template import Template
from pipeline.errors import BaseModelError, TemplateError


@dataclass(frozen=True, kw_only=True)
class WritingSettings:
    """When an answer ends, and how it is searched for.

    `maximum_new_tokens` includes the end token. `separator` stands between prompt and answer; `stop`: strings before which an
    answer ends. One beam is greedy decoding.
    """

    maximum_new_tokens: int
    separator: str
    stop: tuple[str, ...]
    num_beams: int = 1
    length_penalty: float = 1.0


@dataclass(frozen=True)
class Answer:
    """A decoded text, without the white space around it; how many tokens it took, and whether it came to an end by itself."""

    text: str
    tokens: int
    ended: bool


def end_token(base: BaseModel) -> int:
    """The token that ends a text; raises TemplateError when the tokenizer names none, since every answer must be able to end."""
    found: Any = base.tokenizer.eos_token_id
    if not isinstance(found, int):
        raise TemplateError(
            f"The tokenizer of {base.source['id']} has no end token, so an answer could never end. Choose another base model."
        )
    return found


def target_tokens(base: BaseModel, targets: Sequence[str], settings: WritingSettings) -> list[list[int]]:
    """The tokens of each target behind the separator, with the end token; those of a target that is longer than an answer may be are cut.

    A target that is cut has no end token: ending there would be the wrong thing to learn.
    """
    texts = [settings.separator + target for target in targets]
    encoded: Any = base.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"] if texts else []
    return [[*ids, end_token(base)][: settings.maximum_new_tokens] for ids in encoded]


def generation_examples(
    base: BaseModel, template: Template, rows: Sequence[Mapping[str, str]], targets: Sequence[str], settings: WritingSettings
) -> list[GenerationExample]:
    """Rows and their targets for teacher forcing; raises TemplateError for a template that ends with its field and a row without tokens."""
    pairs = zip(template.encode(rows), target_tokens(base, targets, settings), strict=True)
    return [GenerationExample.of(prompt_ids=prompt, target_ids=target) for prompt, target in pairs]


@dataclass(frozen=True)
class Writer:
    """A tuned or hard prompt that answers in text; `prefix` is computed once for all rows."""

    base: BaseModel
    prefix: Prefix
    settings: WritingSettings

    def write(
        self, prompts: Sequence[Sequence[int]], *, batch_size: int, advance: Callable[[int], None] = lambda rows: None
    ) -> list[Answer]:
        """The answer to each prompt (its own tokens behind the shared prefix), in their order; `advance` is told of finished ones.

        When a batch does not fit into GPU memory, everything is decoded again with half as many rows at once.
        """
        decoded = halving(lambda count: self._decode(prompts, count, advance), batch_size)[0]
        return [self._answer(tokens) for tokens in decoded]

    def losses(self, examples: Sequence[GenerationExample], *, batch_size: int) -> list[float]:
        """Mean negative log-likelihood of each target's tokens in nats; exp of it is the perplexity of the reference."""
        outputs = halving(lambda count: Generation().outputs(self.base, self.prefix, examples, count), batch_size)[0]
        return outputs[:, 0, 0].tolist()

    def _decode(self, prompts: Sequence[Sequence[int]], batch_size: int, advance: Callable[[int], None]) -> list[list[int]]:
        settings = DecodingSettings(
            maximum_new_tokens=self.settings.maximum_new_tokens, end_tokens=self._end_tokens(), batch_size=batch_size
        )
        common: dict[str, Any] = {"base": self.base, "prefix": self.prefix, "prompts": prompts, "settings": settings, "advance": advance}
        if self.settings.num_beams == 1:
            return decode_greedy(**common)
        return decode_beams(**common, num_beams=self.settings.num_beams, length_penalty=self.settings.length_penalty)

    def _end_tokens(self) -> tuple[int, ...]:
        """The end token, and each stop string that is a token of its own: what follows would be cut off."""
        stops = [self.base.tokenizer(stop, add_special_tokens=False)["input_ids"] for stop in self.settings.stop]
        return (end_token(self.base), *(ids[0] for ids in stops if len(ids) == 1))

    def _answer(self, tokens: Sequence[int]) -> Answer:
        ended = bool(tokens) and tokens[-1] in self._end_tokens()
        text = str(
            self.base.tokenizer.decode(list(tokens[:-1] if ended else tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
        # The separator may be the very stop string (a line break before the answer): what stands before the answer ends nothing.
        text = text.lstrip()
        cut = min((at for at in (text.find(stop) for stop in self.settings.stop) if at >= 0), default=None)
        return Answer((text if cut is None else text[:cut]).strip(), len(tokens), ended or cut is not None)


def make_writer(base: BaseModel, soft_prompt: SoftPrompt | None, head: tuple[int, ...], settings: WritingSettings) -> Writer:
    """A soft prompt, or none, in front of the template's shared part; raises BaseModelError where the shared-prefix pass is not exact."""
    reason = f"it is an {base.architecture}" if base.architecture != "decoder" else disagreement(base)
    if reason:
        raise BaseModelError(
            f"{base.source['id']} cannot write answers: {reason}. Choose a decoder-only base model; docs/methods.md has the tables."
        )
    with torch.no_grad():
        return Writer(base, encode_prefixes(base, [soft_prompt], head), settings)
