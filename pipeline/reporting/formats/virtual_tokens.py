"""What the tune stage recorded of the virtual tokens."""

from pydantic import model_validator

from pipeline.reporting.formats.record import Record


class Word(Record):
    """A vocabulary word near a virtual token."""

    token_id: int
    text: str
    cosine_distance: float
    l2_distance: float


class VirtualToken(Record):
    """One row of the soft prompt, nearest words first."""

    norm: float
    initial_norm: float
    drift_cosine_distance: float
    drift_l2_distance: float
    nearest: list[Word]


class Vocabulary(Record):
    """The words that there were to choose from, and the median norm of their embeddings."""

    words: int
    median_norm: float


class VirtualTokens(Record):
    """Every virtual token, or the `reason` why the method has none."""

    applicable: bool
    reason: str | None
    method: str | None
    vocabulary: Vocabulary | None
    tokens: list[VirtualToken]

    @model_validator(mode="after")
    def _whole(self) -> "VirtualTokens":
        """Either tokens with words are there, or the reason why not."""
        if self.applicable and (not self.tokens or self.vocabulary is None or not all(token.nearest for token in self.tokens)):
            raise ValueError("needs a vocabulary and tokens, each with its nearest words")
        if not self.applicable and not self.reason:
            raise ValueError("needs the reason why there are no virtual tokens")
        return self
