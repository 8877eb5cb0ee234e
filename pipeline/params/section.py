"""What every section of params.yaml is made of."""

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """Base of every params section: frozen, no unknown keys, no silent conversion between types, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


def placeholders(template: str) -> list[str]:
    """Names in `{braces}` of a template, in order of appearance."""
    return re.findall(r"\{([A-Za-z_][A-Za-z0-9_]*)\}", template)
