"""The templates of this folder, with the filters that they share."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.reporting.figures import percent
from pipeline.reporting.wording import figure, interval, share, signed, why

if TYPE_CHECKING:
    import jinja2

VERDICT_MARKS: Mapping[str, str] = {"PASS": "✓", "FAIL": "✗"}


def environment(*, markup: bool = True) -> "jinja2.Environment":
    """The templates of this folder; with `markup`, every value is escaped for HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=markup,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        newline_sequence="\n",
    )
    filters = {"figure": figure, "signed": signed, "share": share, "interval": interval, "why": why, "percent": percent}
    cast(dict[str, Any], environment.filters).update(filters)
    cast(dict[str, Any], environment.globals)["verdict_marks"] = VERDICT_MARKS
    return environment
