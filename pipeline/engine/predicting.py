"""Using a tuned prompt bundle: load it with its base model, and get label probabilities, or written answers, for rows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pipeline.engine.base_model import BaseModel, load_base_model
from pipeline.engine.batching import Example
from pipeline.engine.objectives import Classification
from pipeline.engine.ranking import Pass, Ranker, tuned_ranker, values_sha256
from pipeline.engine.soft_prompt import load_soft_prompt
from pipeline.engine.template import Template, Verbalizers, compile_template, compile_verbalizers
from pipeline.engine.writing import Writer, WritingSettings, make_writer
from pipeline.errors import BundleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What says where a base model lies, beside its id.
SOURCES = {"package_gguf": ("package", "path"), "gguf": ("path",), "directory": ("path",), "hub": ("revision",)}

# The file of a bundle that says how answers are written; a bundle without it answers labels.
GENERATION_FILE = "generation.json"


@dataclass(frozen=True)
class Predictor:
    """A tuned prompt on its base model. What both compute before any row is seen is computed once, for all predictions."""

    base: BaseModel
    template: Template
    verbalizers: Verbalizers
    ranker: Ranker

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields each row must give, as strings."""
        return self.template.fields

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels in the order of the probabilities."""
        return self.verbalizers.labels

    def predict(self, rows: Sequence[Mapping[str, str]], *, batch_size: int = 64) -> "NDArray[np.float32]":
        """Label probabilities [N, C], each row summing to 1; raises TemplateError naming a row that lacks a field."""
        examples = [Example(ids, -1) for ids in self.template.encode(rows)]
        scores = self.ranker.rank(examples, batch_size=batch_size)
        return scores.exp().numpy()


@dataclass(frozen=True)
class TextPredictor:
    """A tuned prompt that answers in text. It has no labels."""

    template: Template
    writer: Writer

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields each row must give, as strings."""
        return self.template.fields

    def answer(self, rows: Sequence[Mapping[str, str]], *, batch_size: int = 64) -> list[str]:
        """The answer to each row, in order; raises TemplateError naming a row that lacks a field or is too long."""
        return [answer.text for answer in self.writer.write(self.template.encode(rows), batch_size=batch_size)]


@dataclass(frozen=True)
class _Parts:
    """What every kind of bundle holds, checked: the base model, the template, and the pass that reads the soft prompt."""

    base: BaseModel
    template: Template
    length_normalisation: bool
    verbalizers: Mapping[str, str]
    through: Pass


def is_text_bundle(bundle: Path) -> bool:
    """Whether the bundle answers in text: load_text_predictor is then the one to call, else load_predictor."""
    return (bundle / GENERATION_FILE).is_file()


def load_predictor(bundle: Path, *, device: str = "auto", base: BaseModel | None = None) -> Predictor:
    """Load a verified bundle that answers labels, and the base model its manifest names (or use `base`, already loaded).

    Raises BundleError when the base model's weights or tokenizer are not those the prompt was tuned on (an adapter would load
    silently onto any model of the same width), when the soft prompt does not fit it or its values are not those the manifest
    records, when a file of the bundle does not have the expected keys, and when it answers in text.
    """
    if is_text_bundle(bundle):
        raise BundleError(f"{bundle} answers in text ({GENERATION_FILE}) and has no labels. Load it with load_text_predictor.")
    parts = _load_parts(bundle, device, base)
    verbalizers = compile_verbalizers(tokenizer=parts.base.tokenizer, verbalizers=parts.verbalizers)
    objective = Classification(verbalizers, parts.length_normalisation)
    ranker = tuned_ranker(bundle, parts.base, parts.template.head, objective, parts.through)
    return Predictor(base=parts.base, template=parts.template, verbalizers=verbalizers, ranker=ranker)


def load_text_predictor(bundle: Path, *, device: str = "auto", base: BaseModel | None = None) -> TextPredictor:
    """Load a verified bundle that answers in text; as load_predictor, and raises BundleError when it answers labels."""
    if not is_text_bundle(bundle):
        raise BundleError(f"{bundle} answers labels: it has no {GENERATION_FILE}. Load it with load_predictor.")
    parts = _load_parts(bundle, device, base)
    types = {"maximum_new_tokens": int, "separator": str, "stop": list, "num_beams": int, "length_penalty": float}
    found = _read(bundle / GENERATION_FILE, types)
    if not all(isinstance(text, str) and text for text in found["stop"]) or min(found["maximum_new_tokens"], found["num_beams"]) < 1:
        raise BundleError(
            f"{bundle / GENERATION_FILE} holds {found!r:.200}, expected texts in stop and numbers from 1. Fetch the bundle again."
        )
    settings = WritingSettings(
        maximum_new_tokens=found["maximum_new_tokens"],
        separator=found["separator"],
        stop=tuple(found["stop"]),
        num_beams=found["num_beams"],
        length_penalty=found["length_penalty"],
    )
    return TextPredictor(parts.template, make_writer(parts.base, load_soft_prompt(bundle, parts.base), parts.template.head, settings))


def _load_parts(bundle: Path, device: str, base: BaseModel | None) -> _Parts:
    manifest = _read(bundle / "manifest.json", {"base_model": dict, "soft_prompt": dict})
    words = _read(bundle / "verbalizers.json", {}, empty=is_text_bundle(bundle))
    wanted: Mapping[str, Any] = manifest["base_model"]
    if base is None:
        base = load_base_model(source=_source(bundle, wanted.get("source")), device=device, num_labels=len(words))
    for part in ("weights_sha256", "tokenizer_sha256"):
        found = getattr(base, part)
        if found != wanted.get(part):
            raise BundleError(
                f"{bundle} was tuned on {wanted.get('id')} with {part} {wanted.get(part)}, the model found has {found}. "
                "Install the recorded base model or tune again."
            )
    found = manifest["soft_prompt"]
    through: Any = found.get("through", "shared prefix")
    if through not in get_args(Pass):
        raise BundleError(f"{bundle}: the manifest's soft_prompt.through is {through!r:.80}, expected one of {get_args(Pass)}.")
    types = {"template": str, "maximum_field_tokens": int, "length_normalisation": bool}
    text = _read(bundle / "template.json", types, length_normalisation=False)
    template = compile_template(
        tokenizer=base.tokenizer,
        template=text["template"],
        maximum_field_tokens=text["maximum_field_tokens"],
        closed=base.architecture != "decoder",
    )
    if values_sha256(bundle, through) != found.get("sha256"):
        raise BundleError(f"{bundle}: the soft prompt's values do not have the sha256 its manifest records. Fetch the bundle again.")
    return _Parts(base, template, text["length_normalisation"], words, through)


def _read(path: Path, types: Mapping[str, type], *, empty: bool = False, **defaults: Any) -> dict[str, Any]:
    """The JSON object of a bundle's file, in which these keys have these types; without `types` every value is a string. `empty` allows {}."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}. Fetch the bundle again.") from error
    if not isinstance(found, dict) or not (found or empty):
        raise BundleError(f"{path} holds {found!r:.80}, expected an object with keys. Fetch the bundle again.")
    values: dict[str, Any] = {**defaults, **found}
    for key, wanted in types.items() or ((key, str) for key in values):
        if type(values.get(key)) is not wanted:
            raise BundleError(
                f"{path}: {key} is {values.get(key)!r:.80}, expected a value of type {wanted.__name__}. Fetch the bundle again."
            )
    return values


def _source(bundle: Path, source: Any) -> Mapping[str, Any]:
    """Where the manifest says that the base model lies; nothing but names of known kinds of places, since somebody else may have written it."""
    keys = SOURCES.get(str(source.get("kind")), ()) if isinstance(source, dict) else ()
    if not keys or not all(isinstance(source.get(key), str) for key in ("id", *keys)):
        raise BundleError(f"{bundle}: the manifest's base_model.source is {source!r:.200}, expected id and the keys of one of {SOURCES}.")
    # Looking for a package inside another one would import the outer one.
    if not str(source.get("package", "package")).isidentifier():
        raise BundleError(
            f"{bundle}: the manifest looks for the base model in the package {source['package']!r:.80}, expected a plain name."
        )
    return source
