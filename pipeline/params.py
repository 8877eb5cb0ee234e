"""params.yaml as frozen, typed models.

The file holds `defaults` and `tasks.<name>`, each with the same sections; a task's section is merged over the default one.
DVC tracks the two raw sections (`defaults.tune`, `tasks.<name>.tune`), the code sees the merged and typed one.
All errors are collected and reported together, each with the dotted path of the place in the file that holds it.
The file is read as YAML 1.2 by the parser DVC uses, so that `yes`, `no` and `on` can be labels and `1e-3` is a number.
"""

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from pipeline.errors import ParamsError
from pipeline.params_file import describe, listed, merge, read_yaml

TASK_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")  # no dot: DVC would read tasks.a.b.tune as a path and track nothing
RESERVED_COLUMNS = frozenset(
    {"row_id", "source_row", "label", "target", "label_confidence", "source_id", "origin", "text_for_people", "rule", "reason"}
)

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """Base of every params section: frozen, no unknown keys, no silent conversion between types, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


# --- ingest -----------------------------------------------------------------------------------------------------------


NO_CHARSETS = frozenset({"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"})  # codecs of Python, not of files


def _text_encoding(name: str) -> str:
    try:
        known = codecs.lookup(name).name not in NO_CHARSETS
        "".encode(name)  # bytes to bytes, such as base64, is no text encoding
    except (LookupError, ValueError):
        known = False
    if not known:
        raise ValueError(f"{name!r} is not a text encoding; use a name such as utf-8, cp1252 or mac_roman")
    return name


def _delimiter(delimiter: str) -> str:
    if len(delimiter) != 1 or delimiter in '"\r\n\0\ufeff':
        raise ValueError(f"{delimiter!r} cannot delimit cells; use one character such as a comma, a semicolon or a tab")
    return delimiter


Encoding = Annotated[str, AfterValidator(_text_encoding)]
Delimiter = Annotated[str, AfterValidator(_delimiter)]
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
}
COMPRESSED_SUFFIXES = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}


class FileFormat(Section):
    """How a file is stored. `auto` goes by the suffixes of `path`, such as `.jsonl.gz`; `encoding` and `delimiter` belong to text."""

    path: Annotated[str, Field(min_length=1)]
    format: Literal["auto", "csv", "tsv", "jsonl", "parquet", "arrow"] = "auto"
    compression: Literal["auto", "none", "gzip", "zstd"] = "auto"
    encoding: Encoding = "utf-8"
    delimiter: Delimiter | None = None

    @property
    def stored_format(self) -> str:
        """`format`, or what the suffix says; empty when it says nothing."""
        if self.format != "auto":
            return self.format
        suffixes = [suffix for suffix in self._suffixes() if suffix not in COMPRESSED_SUFFIXES]
        return SUFFIXES.get(suffixes[-1] if suffixes else "", "")

    @property
    def stored_compression(self) -> str:
        """`compression`, or what the suffix says: none, gzip or zstd."""
        last = self._suffixes()[-1:]
        return COMPRESSED_SUFFIXES.get(last[0] if last else "", "none") if self.compression == "auto" else self.compression

    def _suffixes(self) -> list[str]:
        """`.jsonl` and `.gz` of `data/rows.jsonl.gz`, or of a URL before its query."""
        name = self.path.split("?")[0] if "://" in self.path else self.path
        return [suffix.lower() for suffix in PurePosixPath(name).suffixes]

    @property
    def cell_delimiter(self) -> str:
        """`delimiter`, or the format's own: a comma, in TSV a tab."""
        return self.delimiter or {"tsv": "\t"}.get(self.stored_format, ",")

    @model_validator(mode="after")
    def _known_format(self) -> Self:
        stored = self.stored_format
        if not stored:
            raise ValueError(
                f"the suffix of {self.path!r} says no format; set `format` to one of {', '.join(sorted(set(SUFFIXES.values())))}"
            )
        if stored not in ("csv", "tsv") and self.delimiter is not None:
            raise ValueError(f"a {stored} file has no delimiter; leave `delimiter` out")
        if stored in ("parquet", "arrow") and self.encoding != "utf-8":
            raise ValueError(f"a {stored} file holds UTF-8; leave `encoding` out")
        return self


class PackageFileSource(FileFormat):
    """A file inside an installed Python package; the package itself is never imported."""

    kind: Literal["package_file"]
    package: str

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError(f"{path!r} leads out of the package; use `kind: file` for a file elsewhere")
        return path


class FileSource(FileFormat):
    """A local file or a URL that fsspec can open (s3, gs, https and others); a relative path starts at the folder of params.yaml."""

    kind: Literal["file"]

    @field_validator("path")
    @classmethod
    def _one_open_url(cls, path: str) -> str:
        if "::" in path:
            raise ValueError("chained URLs are not read; store the file by itself")
        if re.match(r"[^/]+://[^/]*@", path):
            # The text after :// is not quoted: params.yaml is committed and errors are logged.
            raise ValueError("the URL holds a user name or password; leave it out, and give credentials in the environment")
        return path


class HubDatasetSource(Section):
    """A data set on the Hugging Face hub at a fixed revision (a commit hash or tag), or a local folder in its layout.

    A `name` that starts with `/`, `./` or `../` is a folder; a relative one starts at the folder of params.yaml and has no revision.
    """

    kind: Literal["hub_dataset"]
    name: str
    config: str | None = None
    split: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    revision: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether `name` is a path."""
        return self.name.startswith(("/", "./", "../"))

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if not self.is_folder and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.name):
            raise ValueError(f"{self.name!r} is no name on the hub; write owner/name, or a folder as ./folder")
        if not self.is_folder and self.revision is None:
            raise ValueError("`revision` is missing; give a commit hash or tag, so that the same rows are read tomorrow")
        if self.is_folder and self.revision is not None:
            raise ValueError("a local folder has no revision; leave `revision` out")
        return self


class SqlSource(Section):
    """The rows of one SQL query. The database's SQLAlchemy URL stands in the environment variable `url_variable`, never in this file."""

    kind: Literal["sql"]
    url_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    query: Annotated[str, Field(min_length=1)]


Source = Annotated[PackageFileSource | FileSource | HubDatasetSource | SqlSource, Field(discriminator="kind")]


class Columns(Section):
    """Which source column plays which part. `fields` maps the name used in `{braces}` of templates to a source column.

    Exactly one of `label` (one of a closed set) and `target` (free text) is set. `groups` maps the name of a group attribute to its column,
    `id` is the source's own identifier of a row, `origin` the document a row was taken from: rows of one origin share a split.
    """

    fields: Annotated[dict[str, str], Field(min_length=1)]
    label: str | None = None
    target: str | None = None
    label_confidence: str | None = None
    groups: dict[str, str] = {}
    id: str | None = None
    origin: str | None = None

    @field_validator("fields", "groups")
    @classmethod
    def _names(cls, names: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        for name in names:
            if not name.isidentifier() or name in RESERVED_COLUMNS:
                kind = str(info.field_name).removesuffix("s")
                raise ValueError(f"{name!r} cannot be a {kind} name: use an identifier other than {sorted(RESERVED_COLUMNS)}")
        return names

    @model_validator(mode="after")
    def _one_answer(self) -> Self:
        if (self.label is None) == (self.target is None):
            raise ValueError("set exactly one of `label` (one of a closed set) and `target` (free text)")
        if self.target is not None and self.label_confidence is not None:
            raise ValueError("`label_confidence` belongs to a label, not to a free-text target; leave it out")
        return self

    @property
    def answer(self) -> str:
        """The column of `raw` that holds what the prompt should answer: `label` or `target`."""
        return "label" if self.target is None else "target"

    def mapping(self) -> dict[str, str]:
        """Column of `raw` -> source column, for every text column, in the order of `raw`; `label_confidence` is a number and not among them."""
        optional = {"source_id": self.id, "origin": self.origin, **{f"group.{name}": column for name, column in self.groups.items()}}
        answer = {self.answer: self.label if self.target is None else self.target}
        return {name: column for name, column in {**self.fields, **answer, **optional}.items() if column is not None}


class IngestParams(Section):
    """Where rows come from. `sample_rows`: how many to draw (seeded, without replacement); null takes all.

    `stratify_sample` gives each label its share of the sample. A source beyond `maximum_rows` or `maximum_bytes` (unpacked) is an error:
    the first rows of a file are no fair sample of it.
    """

    source: Source
    columns: Columns
    sample_rows: PositiveInt | None = None
    stratify_sample: bool = False
    seed: Seed = 0
    maximum_rows: PositiveInt = 10_000_000
    maximum_bytes: PositiveInt = 4 * 2**30

    @model_validator(mode="after")
    def _strata(self) -> Self:
        if self.stratify_sample and self.columns.target is not None:
            raise ValueError("`stratify_sample` needs labels, and `columns.target` is free text; leave it out")
        return self


# --- validate ---------------------------------------------------------------------------------------------------------


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
    expectations: list[ExpectationParams] = []


# --- split ------------------------------------------------------------------------------------------------------------


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


# --- profile, reference, drift ----------------------------------------------------------------------------------------


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


# --- prompt and base model --------------------------------------------------------------------------------------------


class PromptParams(Section):
    """How an example is shown to the base model.

    `template`: the text around the fields, behind the soft prompt. `verbalizers`: label -> the string that stands for it,
    including its leading space (`{}` for a task with free-text targets); with `length_normalisation` the score of one that is several
    tokens long is their mean log-probability. `hard_prompts`: candidate instructions; the best one on validation is the baseline. An
    encoder can answer none: it has [].
    """

    template: str
    verbalizers: dict[str, str]
    length_normalisation: bool
    hard_prompts: list[str]
    maximum_field_tokens: PositiveInt

    @field_validator("verbalizers")
    @classmethod
    def _distinct(cls, verbalizers: dict[str, str]) -> dict[str, str]:
        if len(verbalizers) == 1:
            raise ValueError(f"expected at least 2 items, one for each label (none for free text), found {verbalizers}")
        if len(set(verbalizers.values())) != len(verbalizers):
            raise ValueError(f"two labels share one verbalizer: {verbalizers}")
        if any(not value.strip() for value in verbalizers.values()):
            raise ValueError(f"an empty verbalizer cannot stand for a label: {verbalizers}")
        return verbalizers

    @property
    def labels(self) -> tuple[str, ...]:
        """The closed label set, in the order of the verbalizers."""
        return tuple(self.verbalizers)


class PackageBaseModel(Section):
    """A GGUF file inside an installed Python package, converted once to safetensors in the model cache.

    `package` is a plain name, as finding a package inside another one imports the outer one; `path` may lead into folders.
    """

    kind: Literal["package_gguf"]
    id: str
    package: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    path: str


class GgufBaseModel(Section):
    """A local GGUF file, converted once to safetensors in the model cache; a relative path starts at the folder of params.yaml."""

    kind: Literal["gguf"]
    id: str
    path: str


class DirectoryBaseModel(Section):
    """A local folder in Hugging Face format; a relative path starts at the folder of params.yaml."""

    kind: Literal["directory"]
    id: str
    path: str


class HubBaseModel(Section):
    """A model on the Hugging Face hub at a fixed revision (a commit hash or tag)."""

    kind: Literal["hub"]
    id: str
    revision: str


class BaseModelParams(Section):
    """The frozen language model. `dtype: auto` takes bfloat16 where the hardware multiplies it natively, else float32.

    `device_map: auto` spreads a model that is too large for one GPU over all of them.
    """

    source: Annotated[PackageBaseModel | GgufBaseModel | DirectoryBaseModel | HubBaseModel, Field(discriminator="kind")]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "eager", "sdpa", "flex_attention"] = "auto"
    device_map: Literal["none", "auto"] = "none"


# --- tune -------------------------------------------------------------------------------------------------------------


class PromptTuning(Section):
    """Virtual tokens [P, H] in front of the input (Lester et al. 2021)."""

    kind: Literal["prompt_tuning"]


class ResidualPromptTuning(Section):
    """Virtual tokens plus what a shared bottleneck network makes of them (Razdaibiedina et al. 2023)."""

    kind: Literal["residual_prompt_tuning"]
    bottleneck: PositiveInt = 128


class PTuning(Section):
    """Virtual tokens computed by an encoder (Liu et al. 2021); `encoder_hidden_size` null is the base model's."""

    kind: Literal["p_tuning"]
    encoder: Literal["MLP", "LSTM"] = "MLP"
    encoder_hidden_size: PositiveInt | None = None


class MultitaskPromptTuning(Section):
    """Virtual tokens times a low-rank matrix (Wang et al. 2023), for one task."""

    kind: Literal["multitask_prompt_tuning"]
    ranks: PositiveInt = 1


class PrefixTuning(Section):
    """Keys and values in front of every layer (Li and Liang 2021); with `projection` computed by a network."""

    kind: Literal["prefix_tuning"]
    projection: bool = False
    encoder_hidden_size: PositiveInt | None = None


class Lora(Section):
    """Low-rank factors beside the linear layers (Hu et al. 2021): the reference arm that says when prompt tuning is the wrong tool."""

    kind: Literal["lora"]
    rank: PositiveInt = 8
    alpha: PositiveInt = 16


class TextInit(Section):
    """Start from the embeddings of a text, repeated or cut to the number of virtual tokens."""

    kind: Literal["text"]
    text: Annotated[str, Field(min_length=1)]


class PlainInit(Section):
    """Start from the verbalizers, from a sample of the 5,000 commonest tokens of the training texts, or from uniform noise."""

    kind: Literal["class_labels", "sample_vocabulary", "random_uniform"]


class TunedPromptInit(Section):
    """Start from another tuned prompt: `path` is its bundle, `sha256` its soft prompt's (in its manifest), so that DVC notices a change."""

    kind: Literal["tuned_prompt"]
    path: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


Method = Annotated[PromptTuning | ResidualPromptTuning | PTuning | MultitaskPromptTuning | PrefixTuning | Lora, Field(discriminator="kind")]
Init = Annotated[TextInit | PlainInit | TunedPromptInit, Field(discriminator="kind")]
PositiveFloat = Annotated[float, Field(gt=0.0)]


class TrialsParams(Section):
    """Trials that share one batch: every seed with every learning rate, init and length. An empty list means the one value of `tune`.

    With `halving`, the worse half of the trials is given up at each evaluation.
    """

    seeds: Annotated[list[Seed], Field(min_length=1)]
    learning_rates: list[PositiveFloat] = []
    inits: list[Init] = []
    num_virtual_tokens: list[PositiveInt] = []
    halving: bool = False

    @field_validator("seeds", "learning_rates", "inits", "num_virtual_tokens")
    @classmethod
    def _distinct(cls, values: list[Any]) -> list[Any]:
        if any(value in values[:index] for index, value in enumerate(values)):
            raise ValueError(f"a value is listed twice: {values}; two equal trials would learn the same")
        return values


class TuneParams(Section):
    """Training of the soft prompt. `evaluate_every` and `early_stopping_patience` count steps and evaluations.

    `rows_at_once`: how many examples one pass holds; null tries the whole batch and halves it when a GPU has no room. The optimiser's
    batch stays `batch_size`. `checkpoint_every` counts steps. `gradient_checkpointing` computes the layers again in the backward pass
    instead of keeping what they gave, which takes less memory and more time.
    """

    method: Method
    num_virtual_tokens: PositiveInt
    init: Init
    optimizer: Literal["adamw", "adafactor"]
    learning_rate: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0.0)]
    warmup_ratio: Fraction
    schedule: Literal["cosine", "linear", "constant"]
    maximum_gradient_norm: PositiveFloat
    batch_size: PositiveInt
    rows_at_once: PositiveInt | None
    gradient_checkpointing: bool = False
    maximum_steps: PositiveInt
    evaluate_every: PositiveInt
    early_stopping_patience: PositiveInt
    checkpoint_every: PositiveInt
    on_problem: Literal["warn", "fail"]
    validation_rows: PositiveInt
    metric: Literal["accuracy", "macro_f1"]
    trials: TrialsParams


class ScoreParams(Section):
    """Scoring of the test split. `hard_prompt_selection_rows`: validation rows on which the candidates compete."""

    batch_size: PositiveInt
    hard_prompt_selection_rows: PositiveInt


# --- evaluate, assess_fairness, gate ----------------------------------------------------------------------------------


class EvaluateParams(Section):
    """Bootstrap intervals of the metrics."""

    bootstrap_replicates: Annotated[int, Field(ge=200)]
    confidence_level: OpenFraction
    seed: Seed


class TextGroups(Section):
    """Groups that are a property of the text: a row belongs to a group when its text matches the regular expression."""

    derived_from: Literal["text"]
    patterns: Annotated[dict[str, str], Field(min_length=1)]

    @field_validator("patterns")
    @classmethod
    def _compilable(cls, patterns: dict[str, str]) -> dict[str, str]:
        for name, pattern in patterns.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"pattern of group {name!r} is not a regular expression: {pattern!r} ({error})") from None
        return patterns


class AssessFairnessParams(Section):
    """Disaggregated metrics. Below `minimum_denominator` rows a group's figure is INSUFFICIENT, never a pass."""

    groups: dict[str, TextGroups]
    minimum_denominator: PositiveInt
    confidence_level: OpenFraction


def gate_metrics(labels: Iterable[str]) -> list[str]:
    """The metrics a minimum can be set on (more is better): accuracy, macro_f1, per_class.<label>.precision, .recall and .f1."""
    return ["accuracy", "macro_f1", *(f"per_class.{label}.{name}" for label in labels for name in ("precision", "recall", "f1"))]


class ValueThreshold(Section):
    """A limit on one metric of the tuned prompt, judged by the end of its interval that is worse."""

    metric: str
    minimum: float


class ChangeThreshold(Section):
    """A limit on tuned minus baseline, on the same rows: the point value reaches `minimum_gain`, the interval excludes 0."""

    metric: Literal["accuracy", "macro_f1"]
    baseline: Literal["hard_prompt", "majority_class"]
    minimum_gain: Annotated[float, Field(ge=0.0)]


def _distinct_groups(groups: list[str]) -> list[str]:
    """A group compared with itself differs by 0 and would pass any limit."""
    if len(set(groups)) != len(groups):
        raise ValueError(f"a group is listed twice: {groups}")
    return groups


class GroupThreshold(Section):
    """A floor on one metric for each listed group of one attribute, judged by the lower end of its interval."""

    attribute: str
    metric: Literal["accuracy"]
    groups: Annotated[list[str], Field(min_length=1), AfterValidator(_distinct_groups)]
    minimum: Fraction


class DifferenceThreshold(Section):
    """A limit on the largest difference of a metric between two of the listed groups, judged by the interval's upper end."""

    attribute: str
    metric: Literal["accuracy"]
    groups: Annotated[list[str], Field(min_length=2), AfterValidator(_distinct_groups)]
    maximum: Fraction


class DegeneracyThreshold(Section):
    """No label may take more than this share of the predictions, and each label must be predicted at least once."""

    maximum_prediction_share: OpenFraction


class GateParams(Section):
    """The promotion rule. Without value thresholds nothing can be promoted."""

    minimum_test_rows: PositiveInt
    value_thresholds: Annotated[list[ValueThreshold], Field(min_length=1)]
    change_thresholds: list[ChangeThreshold]
    group_thresholds: list[GroupThreshold]
    difference_thresholds: list[DifferenceThreshold]
    degeneracy: DegeneracyThreshold


class ReportParams(Section):
    """The prompt card."""

    title: str
    description: str
    examples: PositiveInt
    seed: Seed


class TaskParams(Section):
    """All sections of one task after merging `tasks.<name>` over `defaults`."""

    ingest: IngestParams
    validate_: Annotated[ValidateParams, Field(alias="validate")]
    split: SplitParams
    profile: ProfileParams
    reference: ReferenceParams
    drift: DriftParams
    prompt: PromptParams
    base_model: BaseModelParams
    tune: TuneParams
    score: ScoreParams
    evaluate: EvaluateParams
    assess_fairness: AssessFairnessParams
    gate: GateParams
    report: ReportParams

    @model_validator(mode="after")
    def _sections_agree(self) -> "TaskParams":
        problems = [
            *_answer_problems(self),
            *_field_problems(self),
            *_metric_problems(self),
            *_baseline_problems(self),
            *_group_problems(self),
        ]
        if problems:
            summary = "; ".join(f"{path}: {problem}" for path, problem in problems)
            raise PydanticCustomError("sections_disagree", "{summary}", {"summary": summary, "problems": problems})
        return self


def _answer_problems(params: TaskParams) -> Iterator[tuple[str, str]]:
    """(dotted path, problem) where the verbalizers do not fit the kind of answer: two or more for labels, none for free text."""
    count = len(params.prompt.verbalizers)
    if params.ingest.columns.target is None and not count:
        yield "prompt.verbalizers", "empty; give one for each label (ingest.columns.label)"
    if params.ingest.columns.target is not None and count:
        yield (
            "prompt.verbalizers",
            f"free text (ingest.columns.target) has no verbalizers, found {count}; write {{}} or map ingest.columns.label",
        )


def _field_problems(params: TaskParams) -> Iterator[tuple[str, str]]:
    """(dotted path, problem) of each template that does not use the fields of ingest."""
    known = sorted(params.ingest.columns.fields)
    candidates = {f"hard_prompts.{index}": template for index, template in enumerate(params.prompt.hard_prompts)}
    for where, template in {"template": params.prompt.template, **candidates}.items():
        used = sorted(set(placeholders(template)))
        if not used or not set(used) <= set(known):
            yield (
                f"prompt.{where}",
                f"uses the fields {used}, ingest.columns.fields defines {known}; use at least one of those, and no other",
            )
    external = params.split.external_test
    if external is not None and sorted(external.fields) != known:
        yield (
            "split.external_test.fields",
            f"has the fields {sorted(external.fields)}, ingest.columns.fields defines {known}; give the same",
        )


def _metric_problems(params: TaskParams) -> Iterator[tuple[str, str]]:
    """(dotted path, problem) of each value threshold on something that is no metric, before a prompt is tuned for nothing."""
    known = gate_metrics(params.prompt.labels)
    for index, threshold in enumerate(params.gate.value_thresholds):
        if threshold.metric not in known:
            yield f"gate.value_thresholds.{index}.metric", f"a minimum on {threshold.metric!r} cannot be judged; choose one of {known}"


def _baseline_problems(params: TaskParams) -> Iterator[tuple[str, str]]:
    """(dotted path, problem) of each change threshold against a hard prompt when there is none."""
    for index, threshold in enumerate(params.gate.change_thresholds):
        if threshold.baseline == "hard_prompt" and not params.prompt.hard_prompts:
            yield f"gate.change_thresholds.{index}.baseline", "prompt.hard_prompts is empty, so there is no hard_prompt; use majority_class"


def _group_problems(params: TaskParams) -> Iterator[tuple[str, str]]:
    """(dotted path, problem) of each threshold of the gate that names a group nobody defines."""
    for kind in ("group_thresholds", "difference_thresholds"):
        thresholds: list[GroupThreshold | DifferenceThreshold] = getattr(params.gate, kind)
        for index, threshold in enumerate(thresholds):
            attribute = params.assess_fairness.groups.get(threshold.attribute)
            known = sorted(attribute.patterns) if attribute else []
            unknown = [group for group in threshold.groups if group not in known]
            if unknown:
                where = f"assess_fairness.groups.{threshold.attribute}"
                yield f"gate.{kind}.{index}", f"names the groups {unknown} of {threshold.attribute!r}, {where} defines {known}"


SECTIONS: tuple[str, ...] = tuple(field.alias or name for name, field in TaskParams.model_fields.items())


def placeholders(template: str) -> list[str]:
    """Names in `{braces}` of a template, in order of appearance."""
    return re.findall(r"\{([A-Za-z_][A-Za-z0-9_]*)\}", template)


def load(path: Path) -> dict[str, TaskParams]:
    """Read params.yaml and return every task, typed; raises ParamsError with all errors of all tasks together."""
    document = read_yaml(path)
    errors: list[str] = []
    defaults, tasks = _top_level(document, errors)
    typed: dict[str, TaskParams] = {}
    for name, sections in tasks.items():
        if not TASK_NAME.fullmatch(str(name)):
            errors.append(f"tasks.{name}: a task name is 1 to 64 of a-z 0-9 _ - and starts with a letter")
        elif not isinstance(sections, Mapping):
            errors.append(f"tasks.{name}: expected a mapping of sections, found {sections!r}")
        else:
            _type_task(name, defaults, cast(Mapping[str, Any], sections), typed, errors)
    distinct = list(dict.fromkeys(errors))  # a wrong default shows up in every task
    if distinct:
        raise listed(path, distinct)
    return typed


def load_task(path: Path, task: str) -> TaskParams:
    """Read params.yaml and return one task; raises ParamsError naming the known tasks when there is none of that name."""
    tasks = load(path)
    if task not in tasks:
        raise ParamsError(
            f"{path} has no task {task!r}; it has: {', '.join(sorted(tasks))}. Add a section tasks.{task} or correct the name."
        )
    return tasks[task]


def _top_level(document: Mapping[str, Any], errors: list[str]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    errors.extend(f"{key}: unknown key; the top level holds `defaults` and `tasks`" for key in document if key not in ("defaults", "tasks"))
    found: list[Mapping[str, Any]] = []
    for name in ("defaults", "tasks"):
        value = document.get(name)
        if not isinstance(value, Mapping) or (name == "tasks" and not value):
            errors.append(f"{name}: expected a mapping that is not empty, found {value!r}")
            value = {}
        found.append(cast(Mapping[str, Any], value))
    errors.extend(_section_errors("defaults", found[0]).values())
    return found[0], found[1]


def _section_errors(where: str, sections: Mapping[str, Any]) -> dict[str, str]:
    """Section name -> what is wrong with the section as a whole. DVC tracks params by section, so each must be present."""
    unknown = {name: f"{where}.{name}: unknown section; known: {', '.join(SECTIONS)}" for name in sections if name not in SECTIONS}
    absent = {
        name: f"{where}.{name}: missing section; write `{name}: {{}}` when there is nothing to set"
        for name in SECTIONS
        if name not in sections
    }
    not_mapping = {
        name: f"{where}.{name}: expected a mapping, found {sections[name]!r}"
        for name in SECTIONS
        if name in sections and not isinstance(sections[name], Mapping)
    }
    return unknown | absent | not_mapping


def _type_task(
    name: str, defaults: Mapping[str, Any], sections: Mapping[str, Any], typed: dict[str, TaskParams], errors: list[str]
) -> None:
    """Add the typed task to `typed`, or what is wrong with it to `errors`; a section that is broken as a whole is said once."""
    broken = _section_errors(f"tasks.{name}", sections)
    errors.extend(broken.values())
    broken |= _section_errors("defaults", defaults)
    sound = [section for section in SECTIONS if section not in broken]
    merged = merge({section: defaults[section] for section in sound}, {section: sections[section] for section in sound})
    try:
        params = TaskParams.model_validate(merged)
    except ValidationError as error:
        details = [detail for detail in error.errors() if not detail["loc"] or detail["loc"][0] not in broken]
        errors.extend(line for detail in details for line in describe(detail, name, defaults, sections))
    else:
        typed[name] = params
