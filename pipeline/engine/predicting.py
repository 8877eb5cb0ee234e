"""Using a tuned prompt bundle: load it with its base model, and get label probabilities for rows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pipeline.engine.base_model import BaseModel, load_base_model
from pipeline.engine.batching import Example
from pipeline.engine.objectives import Classification
from pipeline.engine.ranking import Pass, Ranker, tuned_ranker, values_sha256
from pipeline.engine.template import Template, Verbalizers, compile_template, compile_verbalizers
from pipeline.errors import BundleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What says where a base model lies, beside its id.
SOURCES = {"package_gguf": ("package", "path"), "gguf": ("path",), "directory": ("path",), "hub": ("revision",)}


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


def load_predictor(bundle: Path, *, device: str = "auto", base: BaseModel | None = None) -> Predictor:
    """Load a verified bundle and the base model its manifest names (or use `base`, already loaded).

    Raises BundleError when the base model's weights or tokenizer are not those the prompt was tuned on (an adapter would load
    silently onto any model of the same width), when the soft prompt does not fit it or its values are not those the manifest
    records, and when a file of the bundle does not have the expected keys.
    """
    manifest = _read(bundle / "manifest.json", {"base_model": dict, "soft_prompt": dict})
    words = _read(bundle / "verbalizers.json", {})
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
    verbalizers = compile_verbalizers(tokenizer=base.tokenizer, verbalizers=words)
    ranker = tuned_ranker(bundle, base, template.head, Classification(verbalizers, text["length_normalisation"]), through)
    if values_sha256(bundle, through) != found.get("sha256"):
        raise BundleError(f"{bundle}: the soft prompt's values do not have the sha256 its manifest records. Fetch the bundle again.")
    return Predictor(base=base, template=template, verbalizers=verbalizers, ranker=ranker)


def _read(path: Path, types: Mapping[str, type], **defaults: Any) -> dict[str, Any]:
    """The JSON object of a bundle's file, in which these keys have these types; without `types` every value is a string."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}. Fetch the bundle again.") from error
    if not isinstance(found, dict) or not found:
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
