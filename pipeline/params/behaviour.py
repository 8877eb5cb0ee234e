"""The section behaviour: what a tuned prompt is asked beside its test rows."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.params.section import Fraction, OpenFraction, PositiveInt, Section, Seed, placeholders

BUILT_IN_SWAPS = ("pronouns", "gender_terms", "first_names")
MAXIMUM_CASES = 1000

Perturbation = Literal["typos", "case", "spacing", "contractions"]


class Lexicon(Section):
    """Words or phrases that stand for each other on two `sides`, such as [[church, mosque], [bible, quran]]."""

    sides: Annotated[list[str], Field(min_length=2, max_length=2)]
    pairs: Annotated[list[Annotated[list[str], Field(min_length=2, max_length=2)]], Field(min_length=1)]

    @model_validator(mode="after")
    def _clear(self) -> "Lexicon":
        words = [word.lower() for pair in self.pairs for word in pair]
        if any(not word.strip() for word in words) or self.sides[0] == self.sides[1]:
            raise ValueError(f"needs two different sides and no empty word, found {self.sides} and {self.pairs}")
        repeated = sorted({word for word in words if words.count(word) > 1})
        if repeated:
            raise ValueError(f"has the words {repeated} more than once, so their counterpart is not clear")
        return self


class PairFile(Section):
    """A file of ready-made pairs of texts, inside an installed package or, without `package`, at a path from the folder of params.yaml.

    `pairs` is CSV or JSON lines with `first`, `second` and, if wanted, `kind`; the others are the formats of those benchmarks. With
    `sha256` a file of other bytes is refused; DVC does not watch the file itself.
    """

    format: Literal["stereoset", "crows_pairs", "wino", "pairs"]
    package: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    path: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    maximum_pairs: PositiveInt

    @model_validator(mode="after")
    def _inside(self) -> "PairFile":
        path = PurePosixPath(self.path)
        if self.package is not None and (path.is_absolute() or ".." in path.parts):
            raise ValueError(f"{self.path!r} leads out of the package; leave `package` out for a file elsewhere")
        return self


class Edit(Section):
    """What is done to a text: something put before or after it, or every match of `pattern` replaced by `by`."""

    prepend: str = ""
    append: str = ""
    pattern: str | None = None
    by: str = ""

    @model_validator(mode="after")
    def _does_something(self) -> "Edit":
        if not (self.prepend or self.append or self.pattern):
            raise ValueError("changes nothing; give `prepend`, `append` or `pattern`")
        try:
            re.sub(self.pattern or "", self.by, "")
        except (re.error, IndexError) as error:
            raise ValueError(f"pattern {self.pattern!r} with by {self.by!r} is no replacement ({error})") from None
        return self


class Case(Section):
    """One text and the label it must get."""

    text: str
    label: str


class MinimumFunctionalityTest(Section):
    """Texts whose label is beyond doubt: `cases`, and every filling of `template` with `values`, which all have `label`."""

    kind: Literal["minimum_functionality"]
    name: str
    cases: list[Case] = Field(default_factory=list[Case])
    template: str | None = None
    values: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(default_factory=dict[str, list[str]])
    label: str | None = None

    @model_validator(mode="after")
    def _has_cases(self) -> "MinimumFunctionalityTest":
        if not self.cases and self.template is None:
            raise ValueError("has neither `cases` nor a `template`")
        if self.template is not None and (self.label is None or set(placeholders(self.template)) != set(self.values)):
            used = sorted(set(placeholders(self.template)))
            raise ValueError(
                f"the template uses {used}, values gives {sorted(self.values)} and label is {self.label!r}; give each and a label"
            )
        if self.template is not None:
            try:
                self.template.format(**{name: options[0] for name, options in self.values.items()})
            except (ValueError, KeyError, IndexError) as error:
                raise ValueError(
                    f"the template {self.template!r} has a brace that is no field ({error!r}); write {{{{ or }}}} for it"
                ) from None
        count = 1
        for options in self.values.values():
            count *= len(options)
        if count > MAXIMUM_CASES:
            raise ValueError(f"the values make {count} texts; at most {MAXIMUM_CASES}")
        return self


class InvarianceTest(Section):
    """An edit of test rows that must not change their label."""

    kind: Literal["invariance"]
    name: str
    edit: Edit


class DirectionalTest(Section):
    """An edit of test rows after which `label` must not get less probable (`higher`) or more probable (`lower`), by more than `tolerance`."""

    kind: Literal["directional"]
    name: str
    edit: Edit
    label: str
    change: Literal["higher", "lower"]
    tolerance: Fraction


BehaviouralTest = Annotated[MinimumFunctionalityTest | InvarianceTest | DirectionalTest, Field(discriminator="kind")]


class BehaviourParams(Section):
    """Probes of a tuned prompt (docs/fairness-and-behaviour.md); everything is off until it is named.

    `rows`: test rows at most for each probe, those with the smallest row ids that the probe changes; below `minimum_rows` a rate is
    INSUFFICIENT. `field` gets the texts of pairs and cases, and `context` what the other fields hold then; a task of one field needs
    neither. `swaps` are built-in ones or names of `lexicons`; `pairs` are texts whose label must not differ, `bias_pairs` texts of
    which the model must not prefer one.
    """

    rows: PositiveInt
    minimum_rows: PositiveInt
    seed: Seed
    confidence_level: OpenFraction
    field: str | None
    context: dict[str, str]
    swaps: list[str]
    lexicons: dict[str, Lexicon]
    pairs: dict[str, PairFile]
    perturbations: list[Perturbation]
    tests: list[BehaviouralTest]
    batch_invariance_rows: Annotated[int, Field(ge=0)]
    bias_pairs: dict[str, PairFile]

    @field_validator("swaps", "perturbations")
    @classmethod
    def _once(cls, names: list[str]) -> list[str]:
        if len(set(names)) != len(names):
            raise ValueError(f"listed twice: {names}")
        return names

    @model_validator(mode="after")
    def _names_agree(self) -> "BehaviourParams":
        taken = sorted(set(self.lexicons) & set(BUILT_IN_SWAPS))
        if taken:
            raise ValueError(f"the lexicons {taken} have the names of built-in swaps; choose others")
        unknown = [name for name in self.swaps if name not in (*BUILT_IN_SWAPS, *self.lexicons)]
        if unknown:
            raise ValueError(f"swaps names {unknown}; built in are {list(BUILT_IN_SWAPS)}, lexicons defines {sorted(self.lexicons)}")
        names = [test.name for test in self.tests]
        if len(set(names)) != len(names):
            raise ValueError(f"two tests have one name: {names}")
        return self

    @property
    def asks_labels(self) -> bool:
        """Whether any probe needs the label of a text."""
        return bool(self.swaps or self.pairs or self.perturbations or self.tests or self.batch_invariance_rows)

    def test_labels(self) -> list[str]:
        """Every label that a test names."""
        found: list[str] = []
        for test in self.tests:
            if isinstance(test, MinimumFunctionalityTest):
                found += [case.label for case in test.cases] + ([test.label] if test.label is not None else [])
            elif isinstance(test, DirectionalTest):
                found.append(test.label)
        return list(dict.fromkeys(found))
