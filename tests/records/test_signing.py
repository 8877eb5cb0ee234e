"""Signatures of a manifest; the oracle is the openssl command where there is one, and the library's own keys."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline import signing
from pipeline.errors import BundleError, PromptmillError, WorkspaceError
from pipeline.manifest import BUNDLE_FILES, MANIFEST_FILE, SIGNATURE_FILE, verify_bundle, write_manifest
from tests.registry.signing_keys import make_keys


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in BUNDLE_FILES:
        (folder / name).write_bytes(name.encode())
    write_manifest(folder, {"task": "tweets"})
    return folder


def refused(bundle: Path, *trusted: Path, error: type[PromptmillError] = BundleError) -> str:
    with pytest.raises(error) as raised:
        signing.verify_signature(bundle, trusted)
    return str(raised.value)


def test_a_signature_names_its_key_and_leaves_the_bundle_as_it_is(bundle: Path, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path)
    _, other = make_keys(tmp_path, "other")
    manifest = (bundle / MANIFEST_FILE).read_bytes()
    identity = signing.sign_manifest(bundle, private)
    assert signing.verify_signature(bundle, [other, public]) == identity
    assert (bundle / MANIFEST_FILE).read_bytes() == manifest
    verify_bundle(bundle)
    record = json.loads((bundle / SIGNATURE_FILE).read_text())
    assert (record["algorithm"], record["key"], len(base64.b64decode(record["signature"]))) == ("ed25519", identity, 64)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the command openssl")
def test_openssl_makes_the_keys_and_verifies_the_signature(bundle: Path, tmp_path: Path) -> None:
    private, public, signature = tmp_path / "o.pem", tmp_path / "o.pub.pem", tmp_path / "signature"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(private)], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", str(private), "-pubout", "-out", str(public)], check=True, capture_output=True)
    signing.sign_manifest(bundle, private)
    signature.write_bytes(base64.b64decode(json.loads((bundle / SIGNATURE_FILE).read_text())["signature"]))
    verify = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(public), "-rawin", "-sigfile", str(signature)]
    assert subprocess.run([*verify, "-in", str(bundle / MANIFEST_FILE)], capture_output=True).returncode == 0
    assert subprocess.run([*verify, "-in", str(bundle / BUNDLE_FILES[0])], capture_output=True).returncode != 0


def test_no_signature_another_key_and_another_manifest_are_refused(bundle: Path, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path)
    _, other = make_keys(tmp_path, "other")
    assert f"{bundle / SIGNATURE_FILE} does not exist as a plain file" in refused(bundle, public)
    identity = signing.sign_manifest(bundle, private)
    assert f"is a signature by the key {identity}; trusted are " in refused(bundle, other)
    assert "no public key is trusted" in refused(bundle, error=WorkspaceError)
    write_manifest(bundle, {"task": "others"})
    assert f"does not fit {MANIFEST_FILE}" in refused(bundle, public)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"algorithm": "none", "key": "a", "signature": ""}'])
def test_a_signature_of_another_form_is_refused(bundle: Path, tmp_path: Path, content: bytes) -> None:
    _, public = make_keys(tmp_path)
    (bundle / SIGNATURE_FILE).write_bytes(content)
    assert "is no record of an ed25519 signature" in refused(bundle, public)


def test_unusable_keys_are_named_and_not_quoted(bundle: Path, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path)
    assert f"{tmp_path / 'none'}, which cannot be read" in refused(bundle, tmp_path / "none", error=WorkspaceError)
    (tmp_path / "text").write_text("canary")
    for file in (tmp_path / "text", private):
        message = refused(bundle, file, error=WorkspaceError)
        assert f"{file}, which holds no key in PEM form" in message
        assert "canary" not in message
    with pytest.raises(WorkspaceError, match="holds no key in PEM form"):
        signing.sign_manifest(bundle, public)
    assert not (bundle / SIGNATURE_FILE).exists()
