"""A tuned prompt bundle verifies when it is exactly what was written, and in no other case."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BundleError
from pipeline.manifest import BUNDLE_FILES, MANIFEST_FILE, SIGNATURE_FILE, manifest_sha256, sealed, verify_bundle, write_manifest
from pipeline.records import write_json

LINEAGE = {"task": "tweets", "soft_prompt": {"shape": [20, 576]}}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    source = random.Random(0)
    for number, name in enumerate(BUNDLE_FILES):
        (folder / name).write_bytes(source.randbytes(300 + number))
    write_manifest(folder, LINEAGE)
    return folder


def _rewrite(bundle: Path, **changes: Any) -> None:
    manifest = json.loads((bundle / MANIFEST_FILE).read_text())
    write_json(bundle / MANIFEST_FILE, sealed(manifest | changes))


def _refused(bundle: Path) -> str:
    with pytest.raises(BundleError) as caught:
        verify_bundle(bundle)
    message = str(caught.value)
    assert str(bundle) in message
    assert "Fetch the bundle again" in message
    return message


def test_an_unaltered_bundle_verifies_and_gives_its_manifest(bundle: Path):
    manifest = verify_bundle(bundle)
    assert manifest["task"] == "tweets"
    assert sorted(manifest["files"]) == sorted(BUNDLE_FILES)
    assert manifest == json.loads((bundle / MANIFEST_FILE).read_text())


def test_lineage_cannot_replace_the_list_of_files(bundle: Path):
    write_manifest(bundle, {"files": {}, "schema_version": 7, "task": "x"})
    assert sorted(verify_bundle(bundle)["files"]) == sorted(BUNDLE_FILES)


def test_every_flipped_bit_of_a_sample_is_found_in_every_file(bundle: Path):
    flipped = 0
    for name in BUNDLE_FILES:
        original = (bundle / name).read_bytes()
        for bit in (*range(0, len(original) * 8, 97), len(original) * 8 - 1):
            altered = bytearray(original)
            altered[bit // 8] ^= 1 << bit % 8
            (bundle / name).write_bytes(altered)
            assert f"{bundle / name} has sha256 " in _refused(bundle)
            flipped += 1
        (bundle / name).write_bytes(original)
    assert flipped >= 100
    verify_bundle(bundle)


@pytest.mark.parametrize("name", BUNDLE_FILES)
@pytest.mark.parametrize("length", [0, 1, 299])
def test_a_truncated_file_is_named_with_both_sizes(bundle: Path, name: str, length: int):
    size = (bundle / name).stat().st_size
    os.truncate(bundle / name, length)
    assert f"{bundle / name} has {length} bytes, its manifest says {size}" in _refused(bundle)


@pytest.mark.parametrize("name", BUNDLE_FILES)
def test_a_missing_file_is_named(bundle: Path, name: str):
    (bundle / name).unlink()
    assert f"{bundle / name} is missing" in _refused(bundle)


@pytest.mark.parametrize("name", BUNDLE_FILES)
def test_a_required_file_that_neither_lies_there_nor_is_listed_is_named(bundle: Path, name: str):
    (bundle / name).unlink()
    write_manifest(bundle, LINEAGE)
    assert f"{bundle / name} is missing" in _refused(bundle)


@pytest.mark.parametrize("name", ["adapter_model.bin", ".hidden", "sub/file.py"])
def test_an_added_file_is_named(bundle: Path, name: str):
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_text("x")
    assert "somebody added it" in _refused(bundle)


def test_an_added_empty_folder_and_dangling_link_are_found(bundle: Path):
    (bundle / "empty").mkdir()
    assert f"{bundle / 'empty'} is not listed" in _refused(bundle)
    (bundle / "empty").rmdir()
    (bundle / "link").symlink_to("/nowhere")
    assert f"{bundle / 'link'} is not listed" in _refused(bundle)


@pytest.mark.parametrize("name", BUNDLE_FILES)
def test_a_link_to_the_right_content_is_refused(bundle: Path, tmp_path: Path, name: str):
    (bundle / name).rename(tmp_path / "elsewhere")
    (bundle / name).symlink_to(tmp_path / "elsewhere")
    assert f"{bundle / name} is not a plain file" in _refused(bundle)


def test_a_folder_or_a_pipe_in_the_place_of_a_file_is_refused(bundle: Path):
    name = BUNDLE_FILES[0]
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    assert f"{bundle / name} is not a plain file" in _refused(bundle)
    (bundle / name).unlink()
    (bundle / name).mkdir()
    assert f"{bundle / name} is not a plain file" in _refused(bundle)


def test_a_linked_or_missing_manifest_is_refused(bundle: Path, tmp_path: Path):
    (bundle / MANIFEST_FILE).rename(tmp_path / "manifest")
    assert "is no tuned prompt bundle" in _refused(bundle)
    (bundle / MANIFEST_FILE).symlink_to(tmp_path / "manifest")
    assert "is no tuned prompt bundle" in _refused(bundle)
    assert "is no tuned prompt bundle" in _refused(tmp_path / "nowhere")


ENTRY = {"size": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "files",
    [
        None,
        [],
        {"../outside": ENTRY},
        {"/etc/passwd": ENTRY},
        {"sub/file": ENTRY},
        {"a\\b": ENTRY},
        {"..": ENTRY},
        {"": ENTRY},
        {"a": None},
        {"a": {"size": "1", "sha256": "0" * 64}},
        {"a": {"size": 1}},
        {"a": {"size": 1, "sha256": 0}},
    ],
)
def test_a_hostile_file_list_is_refused_before_any_file_is_opened(bundle: Path, files: Any):
    _rewrite(bundle, files=files)
    assert "`files` must map plain file names to size and sha256" in _refused(bundle)


@pytest.mark.parametrize("name", [MANIFEST_FILE, "nul\0byte", "x" * 5000])
def test_a_listed_name_that_cannot_lie_in_the_bundle_is_refused(bundle: Path, name: str):
    manifest = json.loads((bundle / MANIFEST_FILE).read_text())
    _rewrite(bundle, files=manifest["files"] | {name: ENTRY})
    assert "is missing or not listed" in _refused(bundle)


@pytest.mark.parametrize("version", [0, 3, "2", None])
def test_another_schema_version_is_refused(bundle: Path, version: Any):
    _rewrite(bundle, schema_version=version)
    assert "has no schema_version 2" in _refused(bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"null", b"1" * 5000])
def test_a_manifest_that_is_no_json_object_is_refused(bundle: Path, content: bytes):
    (bundle / MANIFEST_FILE).write_bytes(content)
    assert MANIFEST_FILE in _refused(bundle)


def test_a_manifest_of_the_schema_before_is_still_read(bundle: Path):
    manifest = json.loads((bundle / MANIFEST_FILE).read_text())
    del manifest["content_sha256"]
    (bundle / MANIFEST_FILE).write_text(json.dumps(manifest | {"schema_version": 1}))
    assert verify_bundle(bundle)["task"] == "tweets"


def test_lineage_that_was_altered_is_found(bundle: Path):
    text = (bundle / MANIFEST_FILE).read_text()
    (bundle / MANIFEST_FILE).write_text(text.replace("tweets", "tweetz"))
    assert f"{bundle / MANIFEST_FILE} is not as it was written" in _refused(bundle)
    (bundle / MANIFEST_FILE).write_text(text.replace("  ", " "))
    assert f"{bundle / MANIFEST_FILE} is not as it was written" in _refused(bundle)


def test_a_signature_beside_the_manifest_must_be_a_plain_file(bundle: Path):
    (bundle / SIGNATURE_FILE).write_text("anything: who requires a signature verifies it")
    verify_bundle(bundle)
    (bundle / SIGNATURE_FILE).unlink()
    (bundle / SIGNATURE_FILE).symlink_to("/nowhere")
    assert f"{bundle / SIGNATURE_FILE} is not a plain file" in _refused(bundle)


def test_the_manifest_hash_follows_every_file(bundle: Path):
    before = manifest_sha256(bundle)
    write_manifest(bundle, LINEAGE)
    assert manifest_sha256(bundle) == before
    (bundle / BUNDLE_FILES[1]).write_bytes(b"other")
    write_manifest(bundle, LINEAGE)
    assert manifest_sha256(bundle) != before
