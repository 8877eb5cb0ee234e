"""The sections prompt and base_model, which several stages read."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.params.free_text import GenerationParams
from pipeline.params.section import PositiveInt, Section


class PromptParams(Section):
    """How an example is shown to the base model.

    `template`: the text around the fields, behind the soft prompt. `verbalizers`: label -> the string that stands for it,
    including its leading space (`{}` for a task with free-text targets); with `length_normalisation` the score of one that is several
    tokens long is their mean log-probability. `hard_prompts`: candidate instructions; the best one on validation is the baseline. An
    encoder can answer none: it has []. `generation` says how free text is written (null for labels).
    """

    template: str
    verbalizers: dict[str, str]
    length_normalisation: bool
    hard_prompts: list[str]
    maximum_field_tokens: PositiveInt
    generation: GenerationParams | None = None

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

    @property
    def free_text(self) -> bool:
        """Whether the task answers in free text: it then has no verbalizers."""
        return not self.verbalizers

    @property
    def generation_settings(self) -> GenerationParams:
        """How answers are written, with the defaults where the task says nothing."""
        return self.generation or GenerationParams()


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

    `tf32` lets a GPU round the factors of float32 products to 10 bits, which is faster and is no float32. `device_map: auto` spreads a
    model that is too large for one GPU over all of them.
    """

    source: Annotated[PackageBaseModel | GgufBaseModel | DirectoryBaseModel | HubBaseModel, Field(discriminator="kind")]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "eager", "sdpa", "flex_attention"] = "auto"
    tf32: bool = False
    device_map: Literal["none", "auto"] = "none"
