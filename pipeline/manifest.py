"""The manifest of a tuned prompt bundle: which files it holds, their sizes and sha256, and what they were made from.

safetensors has no checksum and MLflow checks none, so a bundle is verified against this file after every copy and before every load.
"""

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import BundleError
from pipeline.records import sha256_file, sha256_json, write_json

MANIFEST_FILE, SIGNATURE_FILE = "manifest.json", "manifest.sig"
SCHEMA_VERSION = 2
WITHOUT_CONTENT_SHA256 = 1  # bundles of this schema are still read; nothing but their registered hash protects their manifest
BUNDLE_FILES = ("adapter_config.json", "adapter_model.safetensors", "template.json", "verbalizers.json")

_AGAIN = "Fetch the bundle again (`promptmill promote`/`predict` download it anew) or rebuild it with `dvc repro`."


def write_manifest(bundle: Path, lineage: Mapping[str, Any]) -> dict[str, Any]:
    """Write `manifest.json` over the files now in `bundle` with `lineage` beside them; returns the manifest."""
    names = sorted(path.name for path in bundle.iterdir() if path.name not in (MANIFEST_FILE, SIGNATURE_FILE))
    files = {name: {"size": (bundle / name).stat().st_size, "sha256": sha256_file(bundle / name)} for name in names}
    own = {"schema_version": SCHEMA_VERSION, "files": files}
    manifest = sealed({**own, **lineage, **own})  # lineage stands behind them and cannot replace them
    write_json(bundle / MANIFEST_FILE, manifest)
    return manifest


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with `content_sha256`, the hash of all the rest: no altered copy of its file passes `is_sealed`."""
    content = {name: value for name, value in record.items() if name != "content_sha256"}
    return {**content, "content_sha256": sha256_json(content)}


def is_sealed(record: Mapping[str, Any], text: str) -> bool:
    """Whether the record has the hash it states, and no character of `text` differs from how `write_json` lays it out."""
    try:
        return dict(record) == sealed(record) and text == json.dumps(record, ensure_ascii=False, indent=2) + "\n"
    except ValueError:  # NaN, which no sealed record holds
        return False


def verify_bundle(bundle: Path) -> dict[str, Any]:
    """Check that `bundle` holds exactly the files of its manifest, unaltered; returns the manifest.

    The manifest itself must be the bytes that `write_manifest` wrote. A signature may lie beside it; `pipeline.signing` verifies it where
    one is required. Raises BundleError naming the first file that is missing, added, linked, or of another size or sha256.
    """
    manifest = _read_manifest(bundle)
    listed: Mapping[str, Mapping[str, Any]] = manifest["files"]
    present = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*")} - {MANIFEST_FILE, SIGNATURE_FILE}
    for name in sorted(present - set(listed)):
        raise BundleError(f"{bundle / name} is not listed in {MANIFEST_FILE}: somebody added it. {_AGAIN}")
    for name in sorted({*listed, *BUNDLE_FILES}):
        if name not in listed or name not in present:
            raise BundleError(f"{bundle / name} is missing or not listed in {MANIFEST_FILE}. {_AGAIN}")
        _verify_file(bundle / name, listed[name])
    signature = bundle / SIGNATURE_FILE
    if signature.is_symlink() or (signature.exists() and not signature.is_file()):
        raise BundleError(f"{signature} is not a plain file. {_AGAIN}")
    return manifest


def manifest_sha256(bundle: Path) -> str:
    """Hex sha256 of the manifest's bytes: with verify_bundle, the identity of the whole bundle."""
    return sha256_file(bundle / MANIFEST_FILE)


def _verify_file(path: Path, expected: Mapping[str, Any]) -> None:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path} is not a plain file. {_AGAIN}")
    if status.st_size != expected["size"]:
        raise BundleError(f"{path} has {status.st_size} bytes, its manifest says {expected['size']}. {_AGAIN}")
    found = sha256_file(path)
    if found != expected["sha256"]:
        raise BundleError(f"{path} has sha256 {found}, its manifest says {expected['sha256']}: the file was altered. {_AGAIN}")


def _read_manifest(bundle: Path) -> dict[str, Any]:
    path = bundle / MANIFEST_FILE
    if not bundle.is_dir() or not path.is_file() or path.is_symlink():
        raise BundleError(f"{path} does not exist as a plain file, so {bundle} is no tuned prompt bundle. {_AGAIN}")
    try:
        text = path.read_bytes().decode("utf-8")
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON ({error}). {_AGAIN}") from None
    if not isinstance(manifest, dict) or manifest.get("schema_version") not in (SCHEMA_VERSION, WITHOUT_CONTENT_SHA256):
        raise BundleError(f"{path} has no schema_version {SCHEMA_VERSION}; this promptmill reads no other. {_AGAIN}")
    if not _well_formed(manifest.get("files")):
        raise BundleError(f"{path}: `files` must map plain file names to size and sha256. {_AGAIN}")
    if manifest["schema_version"] == SCHEMA_VERSION and not is_sealed(manifest, text):
        raise BundleError(f"{path} is not as it was written: its content_sha256 or its layout does not fit. {_AGAIN}")
    return manifest


def _well_formed(files: Any) -> bool:
    return isinstance(files, dict) and all(
        isinstance(name, str)
        and name not in ("", ".", "..")
        and "/" not in name
        and "\\" not in name
        and isinstance(entry, dict)
        and isinstance(entry.get("size"), int)
        and isinstance(entry.get("sha256"), str)
        for name, entry in files.items()
    )
