"""Stage drift: how far the training data lies from the reference's. Drift is a finding, not an error; the gate may refuse for it."""

from typing import Any

from pipeline.data.drift import drift_report
from pipeline.data.profiles import read_profile, read_reference
from pipeline.layout import Paths
from pipeline.params import TaskParams
from pipeline.records import write_json


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Write `drift` and return it. Raises StageInputError naming a file of a profile that is missing or altered."""
    current = read_profile(record=inputs.data_profile, arrays=inputs.profile_arrays)
    against, reference = read_reference(inputs.reference)
    report = drift_report(current, reference, against=against, limits=params.drift)
    written = {"task": outputs.drift.parent.name, **report}
    write_json(outputs.drift, written)
    return written
