"""How many tokens a row's prompt takes in the task's base model, counted without loading the model.

The counts are the engine's (`pipeline.engine.template`): literal pieces and fields are tokenised apart, white space in front of
a field belongs to it, a field is cut at its limit, and text that spells a special token stays text.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import BaseModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEXTS_AT_ONCE = 4096  # an encoding takes some kilobytes
_FIELD = re.compile(r"(\s*)\{([A-Za-z_][A-Za-z0-9_]*)\}")

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PromptTokens:
    """The tokenizer (JSON of the `tokenizers` library) of a base model, and everything that takes tokens beside a row's own text.

    `templates[0]` is the prompt's template, which stands behind the virtual tokens; the others are the hard prompts, which do not.
    `answers` are the verbalizers; without any, each row's own target is the answer.
    """

    base_model: str
    tokenizer: str
    context_length: int
    virtual_tokens: int
    templates: tuple[str, ...]
    answers: tuple[str, ...]
    maximum_field_tokens: int

    @cached_property
    def _tokenizer(self) -> "Tokenizer":
        from tokenizers import Tokenizer

        try:
            tokenizer: Any = Tokenizer.from_str(self.tokenizer)
        except Exception as error:  # the library raises nothing narrower
            raise BaseModelError(
                f"The tokenizer of {self.base_model} is damaged ({error}). Fetch or convert the base model again."
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        return tokenizer

    @property
    def template_tokens(self) -> int:
        """Tokens of the template around its fields, with those that the tokenizer puts around every text."""
        return self._fixed_tokens(self.templates[0])

    @property
    def answer_tokens(self) -> int:
        """Tokens of the longest verbalizer; 0 for a task with free-text targets, whose tokens are counted by row."""
        return max((int(n) for n in self.count(self.answers)), default=0)

    @property
    def room(self) -> int:
        """What is left for a row's own text."""
        return self.context_length - self.virtual_tokens - self.template_tokens - self.answer_tokens

    def count(self, texts: Sequence[str]) -> Counts:
        """Tokens of each text by itself."""
        counts = [len(one) for start in range(0, len(texts), TEXTS_AT_ONCE) for one in self._encode(texts[start : start + TEXTS_AT_ONCE])]
        return np.array(counts, dtype="int64")

    def count_rows(self, batch: pa.RecordBatch, fields: Sequence[str], answer: str) -> dict[str, Counts]:
        """Per row: `<field> tokens` of each field by itself, and `prompt tokens`: the longest prompt with its answer, all told.

        A field is tokenised with the white space that the prompt's template has in front of it; a hard prompt with another can
        differ by a token. A field that is null counts 0 tokens.
        """
        spaces = {field: space for space, field in reversed(_FIELD.findall(self.templates[0]))}
        alone = {name: self._count_column(batch.column(name), spaces.get(name, "")) for name in fields}
        prompts = [self._fixed_tokens(template) + self._field_tokens(template, alone, batch.num_rows) for template in self.templates]
        prompts[0] += self.virtual_tokens
        own = self.answer_tokens if self.answers else self._count_column(batch.column(answer), "")
        return {**{f"{name} tokens": counts for name, counts in alone.items()}, "prompt tokens": np.max(prompts, axis=0) + own}

    def _field_tokens(self, template: str, alone: Mapping[str, Counts], rows: int) -> Counts:
        """Tokens of all fields of a template, each cut at its limit."""
        used = [np.minimum(alone[name], self.maximum_field_tokens) for _, name in _FIELD.findall(template)]
        return np.sum(used, axis=0) if used else np.zeros(rows, dtype="int64")

    def _count_column(self, column: pa.Array, space: str) -> Counts:
        texts = column.to_pylist()
        counts = np.zeros(len(texts), dtype="int64")
        present = np.array([text is not None for text in texts], dtype=bool)
        counts[present] = self.count([space + text for text in texts if text is not None])
        return counts

    def _fixed_tokens(self, template: str) -> int:
        literals = [piece for piece in _FIELD.sub("\0", template).split("\0") if piece]
        return int(self.count(literals).sum()) + int(self._tokenizer.num_special_tokens_to_add(False))

    def _encode(self, texts: Sequence[str]) -> Any:
        return self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
