"""Whether the local file that a task's rows came from is still the one that ingest read. DVC does not watch it."""

from pathlib import Path

from pipeline.data.sources.places import locate
from pipeline.errors import SourceError, StageInputError
from pipeline.layout import Layout
from pipeline.params import FileSource, PackageFileSource, TaskParams
from pipeline.records import read_json, sha256_file

STAGE = "ingest"


def source_changed(root: Path, task: str, params: TaskParams) -> bool:
    """Whether ingest must run again although DVC would not: the source file holds other bytes than those of the ingest report.

    DVC cannot know it, as dvc.yaml is the same for all tasks. A file that is gone changes nothing: its rows are in `raw`, which DVC
    can restore. What changed behind a URL or in a database is for `promptmill data refresh` to find out.
    """
    source = params.ingest.source
    if not isinstance(source, FileSource | PackageFileSource) or "://" in source.path:
        return False
    try:
        recorded = read_json(Layout(root, task).path("ingest_report")).get("source_sha256")
        return sha256_file(locate(source, root=root)) != recorded
    except (StageInputError, SourceError, OSError):
        return False
