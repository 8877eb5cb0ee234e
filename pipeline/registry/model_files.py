"""The files that MLflow keeps around a bundle (MLmodel, requirements, input example): listed with their sha256, and verified.

The bundle's manifest cannot list them, since MLmodel holds the manifest's hash; and MLflow reads MLmodel before it calls our loader, so
a damaged one is found at the latest there, and by promptmill's own downloads before anything reads it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pipeline.errors import BundleError
from pipeline.manifest import SIGNATURE_FILE, is_sealed, sealed
from pipeline.records import sha256_file, write_json

LIST_FILE = "model_files.json"
BUNDLES_FOLDER = "data"
WRITTEN_BY_DOWNLOAD = "registered_model_meta"  # MLflow adds it to a copy that was asked for as models:/<name>/<version>

_AGAIN = "Register the bundle again: `promptmill run TASK`."


def write_model_files(model: Path) -> str:
    """List the files of the MLflow model folder that the bundle's manifest does not list; returns the hex sha256 of the list."""
    write_json(model / LIST_FILE, sealed({"files": {name: sha256_file(model / name) for name in sorted(_present(model))}}))
    return sha256_file(model / LIST_FILE)


def verify_model_files(model: Path, expected: str | None = None) -> None:
    """Check that the folder holds exactly the listed files, unaltered, and the list itself when its sha256 is `expected`.

    Raises BundleError naming the first file that is missing, added, linked or altered.
    """
    path = model / LIST_FILE
    if expected is not None and (path.is_symlink() or not path.is_file() or sha256_file(path) != expected):
        raise BundleError(f"{path} is missing or was altered: its registered sha256 is {expected}. {_AGAIN}")
    listed, present = _read_list(path), _present(model)
    for name in sorted({*listed, *present}):
        file = model / name
        if name not in listed:
            raise BundleError(f"{file} is not listed in {LIST_FILE}: somebody added it. {_AGAIN}")
        if name not in present:
            raise BundleError(f"{file} is missing. {_AGAIN}")
        if file.is_symlink() or not file.is_file():
            raise BundleError(f"{file} is not a plain file. {_AGAIN}")
        found = sha256_file(file)
        if found != listed[name]:
            raise BundleError(f"{file} has sha256 {found}, registered was {listed[name]}: the file was altered. {_AGAIN}")


def _present(model: Path) -> set[str]:
    """Names of what lies around the bundle, and of the signature, which is in it but cannot be in the manifest that it signs."""
    apart = {LIST_FILE, WRITTEN_BY_DOWNLOAD, BUNDLES_FOLDER}
    around = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.relative_to(model).parts[0] not in apart}
    return around | {path.relative_to(model).as_posix() for path in model.glob(f"{BUNDLES_FOLDER}/*/{SIGNATURE_FILE}")}


def _read_list(path: Path) -> dict[str, str]:
    """Name -> sha256; the names are plain, so that none leads out of the folder."""
    try:
        text = path.read_bytes().decode("utf-8")
        document: Any = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as JSON ({type(error).__name__}). {_AGAIN}") from None
    record = cast(Mapping[str, Any], document) if isinstance(document, dict) else {}
    if path.is_symlink() or not is_sealed(record, text):
        raise BundleError(f"{path} is not as it was written. {_AGAIN}")
    files: Any = record.get("files")
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in cast(dict[str, Any], files).values()):
        raise BundleError(f"{path}: `files` must map file names to sha256. {_AGAIN}")
    return cast(dict[str, str], files)
