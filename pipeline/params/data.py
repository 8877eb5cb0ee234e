"""The sections validate, split, profile, reference and drift."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.params.ingest import Source
from pipeline.params.section import Fraction, OpenFraction, PositiveInt, Section, Seed


class ScriptParams(Section):
    """The writing systems expected: at least `minimum_share` of a text's letters are of one of them. Texts without letters pass."""

    expected: Annotated[list[Annotated[str, Field(pattern=r"^[A-Z][A-Za-z_]+$")]], Field(min_length=1)]
    minimum_share: Fraction = 0.5
    foreign_texts: Literal["keep", "quarantine"] = "keep"


class PersonalDataParams(Section):
    """E-mail addresses, phone numbers and card numbers: counted, replaced by a word in brackets, or a reason to set the row aside.

    `phone_region` is the country (ISO 3166) whose numbers are recognised without a country code; null knows only +49 and the like.
    """

    action: Literal["count", "mask", "quarantine"] = "count"
    phone_region: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] | None = None


class ExpectationParams(BaseModel):
    """One expectation of Great Expectations by its own name and arguments, looked at in the raw or the accepted rows.

    What stands beside the four keys are the expectation's arguments (`column`, `regex`, `mostly`, ...); the validate stage checks
    them against Great Expectations before it reads a row.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    expectation: Annotated[str, Field(pattern=r"^expect_[a-z0-9_]+$")]
    severity: Literal["critical", "warning", "info"] = "critical"
    on: Literal["raw", "accepted"] = "accepted"

    @property
    def arguments(self) -> dict[str, Any]:
        """The expectation's own arguments."""
        return dict(self.model_extra or {})


class ValidateParams(Section):
    """The data contract. Row rules quarantine single rows; expectations of severity critical block the run.

    `cut_texts`: fields longer than prompt.maximum_field_tokens, whose end the base model never sees. `maximum_association` limits
    Cramer's V (0 to 1) between the label and each of: a URL, a handle, a hashtag in the text, and its length. `minimum_group_rows` holds
    for each value of each group column. `maximum_label_imbalance` is rows of the most frequent label over rows of the rarest.
    """

    minimum_rows: PositiveInt
    minimum_accepted_share: Fraction
    minimum_text_characters: PositiveInt = 1
    maximum_text_characters: PositiveInt
    maximum_target_characters: PositiveInt = 10_000
    cut_texts: Literal["keep", "quarantine"] = "keep"
    low_label_confidence: Literal["quarantine", "keep"]
    minimum_label_confidence: Fraction
    duplicates: Literal["keep_first", "keep_all"]
    conflicting_labels: Literal["quarantine", "keep"]
    minimum_label_rows: PositiveInt = 1
    maximum_label_imbalance: Annotated[float, Field(ge=1.0)] | None = None
    maximum_association: Fraction | None = None
    minimum_group_rows: PositiveInt | None = None
    script: ScriptParams | None = None
    personal_data: PersonalDataParams = PersonalDataParams()
    expectations: list[ExpectationParams] = Field(default_factory=list[ExpectationParams])


IgnoredPart = Literal["urls", "handles", "digits", "punctuation"]


class NearDuplicateParams(Section):
    """When two texts count as the same: at least `similarity` of the shingles that either has are in both (Jaccard similarity).

    A shingle is `shingle_characters` characters in a row. Shingles in more than `boilerplate_share` of the texts are a template and do not count.
    """

    similarity: Annotated[float, Field(ge=0.5, le=1.0)]
    shingle_characters: Annotated[int, Field(ge=2, le=32)]
    boilerplate_share: Annotated[float, Field(gt=0.0, le=1.0)]


class ExternalTest(Section):
    """A test file of your own, of any source that ingest reads; `fields` as in ingest.columns. It is only compared, never scored."""

    source: Source
    fields: Annotated[dict[str, str], Field(min_length=1)]


class SplitParams(Section):
    """Shares of the accepted rows; what remains is the training split.

    `ignored`: the parts of a text that do not count when texts are compared. `external_test`: rows of training and validation
    that are in it are set aside.
    """

    validation_share: OpenFraction
    test_share: OpenFraction
    seed: Seed = 0
    ignored: list[IgnoredPart]
    near_duplicates: NearDuplicateParams
    external_test: ExternalTest | None = None

    @field_validator("ignored")
    @classmethod
    def _listed_once(cls, parts: list[IgnoredPart]) -> list[IgnoredPart]:
        if len(set(parts)) != len(parts):
            raise ValueError(f"a part is listed twice: {parts}")
        return parts

    @model_validator(mode="after")
    def _room_for_training(self) -> "SplitParams":
        if self.validation_share + self.test_share >= 1.0:
            raise ValueError("validation_share + test_share must stay below 1, or no training rows remain")
        return self


class ProfileParams(Section):
    """What is kept of the training split for later comparisons: rows whose lengths and words count, rows that are embedded, words kept."""

    sample_rows: PositiveInt
    embedded_rows: PositiveInt
    vocabulary_words: PositiveInt

    @model_validator(mode="after")
    def _embedded_are_sampled(self) -> "ProfileParams":
        if self.embedded_rows > self.sample_rows:
            raise ValueError(f"embedded_rows is {self.embedded_rows}, above sample_rows ({self.sample_rows}), from which they are taken")
        return self


class ReferenceParams(Section):
    """What the training data is compared with: that of the `champion`, or of the version with this number."""

    against: Any

    @field_validator("against")
    @classmethod
    def _champion_or_version(cls, against: Any) -> str | int:
        if against != "champion" and (isinstance(against, bool) or not isinstance(against, int) or against < 1):
            raise ValueError(f"expected `champion` or the number of a version, found {against!r}")
        return against


class DriftParams(Section):
    """When data has drifted. A check fails when the difference is beyond chance at `significance` and above its maximum.

    With `on_drift: refuse` a check that fails, or has too few rows, keeps the gate from promoting. `seed` is the domain classifier's.
    """

    on_drift: Literal["report", "refuse"]
    minimum_rows: Annotated[int, Field(ge=20)]
    significance: OpenFraction
    maximum_label_distance: Fraction
    maximum_length_distance: Fraction
    maximum_unknown_words: Fraction
    maximum_group_difference: Fraction
    maximum_domain_auc: Annotated[float, Field(ge=0.5, le=1.0)]
    seed: Seed
