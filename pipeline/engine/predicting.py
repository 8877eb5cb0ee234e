"""Using a tuned prompt bundle: load it with its base model, and get label probabilities for rows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.engine.base_model import BaseModel, load_base_model
from pipeline.engine.batching import Example
from pipeline.engine.scoring import score_examples
from pipeline.engine.soft_prompt import load_soft_prompt, tensor_sha256
from pipeline.engine.template import Template, Verbalizers, compile_template, compile_verbalizers
from pipeline.errors import BundleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Predictor:
    """A tuned prompt on its base model."""

    base: BaseModel
    soft_prompt: torch.Tensor
    template: Template
    verbalizers: Verbalizers

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
        scores = score_examples(
            base=self.base,
            soft_prompt=self.soft_prompt,
            head=self.template.head,
            examples=examples,
            verbalizers=self.verbalizers,
            batch_size=batch_size,
        )
        return scores.exp().numpy()


def load_predictor(bundle: Path, *, device: str = "auto", base: BaseModel | None = None) -> Predictor:
    """Load a verified bundle and the base model its manifest names (or use `base`, already loaded).

    Raises BundleError when the base model's weights or tokenizer are not those the prompt was tuned on (an adapter would load
    silently onto any model of the same width), or when the soft prompt's values are not those the manifest records.
    """
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    wanted: Mapping[str, Any] = manifest["base_model"]
    if base is None:
        base = load_base_model(source=wanted["source"], dtype="auto", attention="auto", device=device)
    for part in ("weights_sha256", "tokenizer_sha256"):
        found = getattr(base, part)
        if found != wanted[part]:
            raise BundleError(
                f"{bundle} was tuned on {wanted['id']} with {part} {wanted[part]}, the model found has {found}. Install the recorded base model or tune again."
            )
    soft_prompt = load_soft_prompt(bundle, base)
    if tensor_sha256(soft_prompt) != manifest["soft_prompt"]["sha256"]:
        raise BundleError(f"{bundle}: the soft prompt's values do not have the sha256 its manifest records. Fetch the bundle again.")
    template = json.loads((bundle / "template.json").read_text(encoding="utf-8"))
    verbalizers = json.loads((bundle / "verbalizers.json").read_text(encoding="utf-8"))
    return Predictor(
        base=base,
        soft_prompt=soft_prompt,
        template=compile_template(
            tokenizer=base.tokenizer, template=template["template"], maximum_field_tokens=template["maximum_field_tokens"]
        ),
        verbalizers=compile_verbalizers(tokenizer=base.tokenizer, verbalizers=verbalizers),
    )
