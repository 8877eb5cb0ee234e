"""What every record of a report has in common: strict types, estimates that may be null, and errors that name file and key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from pipeline.errors import StageInputError


class Record(BaseModel):
    """Base of every record: frozen, no conversion between types, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


RecordT = TypeVar("RecordT", bound=Record)


class Estimate(Record):
    """A point value, its interval and the rows behind it; `value` None means not computable, and `why` says the reason."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    why: str | None = None
    between: list[str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_stays_readable(cls, data: Any) -> Any:
        """A null in place of an estimate becomes one without a value; one without a value has no interval either."""
        if data is None:
            return {"value": None, "low": None, "high": None, "n": 0, "why": "the report holds null instead of an estimate"}
        if isinstance(data, Mapping):
            record = dict(cast(Mapping[str, Any], data))
            return record | {"low": None, "high": None} if record.get("value", 0) is None else record
        return data


def parse(model: type[RecordT], record: Mapping[str, Any], where: Path | str) -> RecordT:
    """`record` as a typed one; raises StageInputError naming `where` (a file) and the dotted key of the first error."""
    try:
        return model.model_validate(record)
    except ValidationError as error:
        detail = error.errors()[0]
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "missing":
        raise StageInputError(
            f"{where} lacks the key {key!r}, which the prompt card shows. Run the stage that writes it again: `dvc repro`."
        )
    found = repr(detail["input"])
    found = found if len(found) <= 80 else f"{found[:77]}..."
    raise StageInputError(
        f"{where}: {key!r} is {found}, expected otherwise ({detail['msg']}). Run the stage that writes it again: `dvc repro`."
    )
