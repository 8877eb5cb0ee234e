"""The estimates of a nested record under flat names, as tables, MLflow and the gate write them."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

_ESTIMATE = frozenset({"value", "low", "high", "n"})


def flat_estimates(record: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """(keys, estimate) of every estimate in a record of metrics.json, at any depth, in the record's order; lists and counts are left out."""
    for key, value in record.items():
        if not isinstance(value, Mapping):
            continue
        found = cast(Mapping[str, Any], value)
        if found.keys() >= _ESTIMATE:
            yield (*prefix, key), found
        else:
            yield from flat_estimates(found, (*prefix, key))
