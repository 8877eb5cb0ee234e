"""Stage profile: what is kept of the training split for later comparisons, without its texts."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pipeline.data.profiles import Profile, make_profile, write_profile
from pipeline.engine.embedding_table import load_embedding_table
from pipeline.layout import Paths
from pipeline.params import TaskParams
from pipeline.progress import announce
from pipeline.records import iterate_parquet, verify_parquet

if TYPE_CHECKING:
    import pyarrow as pa

# Enough to place a text; a table of whole documents would cost minutes for the same answer.
MAXIMUM_TOKENS = 512


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Write `data_profile` and `profile_arrays` from `train`; returns the record. Raises BaseModelError, StageInputError."""
    profile = profile_rows(iterate_parquet(inputs.train), params)
    return write_profile(
        profile,
        record=outputs.data_profile,
        arrays=outputs.profile_arrays,
        task=outputs.data_profile.parent.name,
        train_sha256=verify_parquet(inputs.train),
    )


def profile_rows(batches: "Iterable[pa.RecordBatch]", params: TaskParams) -> Profile:
    """The profile of rows with `row_id`, the task's fields, and `label` or `target` where they are known; raises BaseModelError."""
    table = load_embedding_table(source=params.base_model.source.model_dump(), say=announce)
    return make_profile(
        batches,
        fields=list(params.ingest.columns.fields),
        groups=params.assess_fairness.groups,
        settings=params.profile,
        embed=lambda texts: table.mean_pooled(texts, maximum_tokens=MAXIMUM_TOKENS),
        base_model=table.identity(),
    )
