"""Where a signature is required, an unsigned version is not registered again, downloaded, promoted or loaded."""

import os
from pathlib import Path

import pytest

from pipeline.errors import BundleError, WorkspaceError
from pipeline.registry import promotion, pyfunc, registry
from tests.registry.registry_workspace import TASK, Workspace
from tests.registry.signing_keys import make_keys


def require_signatures(root: Path, key: str) -> None:
    """Let params.yaml of the workspace require a signature by `key`."""
    path = root / "params.yaml"
    text = path.read_text(encoding="utf-8")
    changed = text.replace(
        "    require_signature: false\n    trusted_keys: []\n", f"    require_signature: true\n    trusted_keys: [{key}]\n"
    )
    assert changed != text
    path.write_text(changed, encoding="utf-8")


def test_a_required_signature_is_verified_wherever_a_bundle_comes_from_the_store(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = make_keys(workspace.root)
    assert workspace.register() == 1
    require_signatures(workspace.root, public.name)
    with pytest.raises(BundleError, match=r"manifest\.sig does not exist"):
        registry.download_bundle(root=workspace.root, task=TASK, version=1, destination=tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"manifest\.sig does not exist"):
        promotion.promote(root=workspace.root, task=TASK, version=1)
    with pytest.raises(BundleError, match=r"manifest\.sig does not exist"):
        workspace.register()  # nobody signs: the new copy is refused before it becomes a version
    assert [version["version"] for version in registry.list_versions(root=workspace.root, task=TASK)] == [1]

    monkeypatch.setenv("PROMPTMILL_SIGNING_KEY", str(private))
    assert workspace.register() == 2
    registry.download_bundle(root=workspace.root, task=TASK, version=2, destination=tmp_path / "bundle")
    assert promotion.promote(root=workspace.root, task=TASK, version=2)["version"] == 2


def test_a_consumer_without_a_checkout_trusts_the_keys_of_its_environment(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = make_keys(tmp_path)
    _, other = make_keys(tmp_path, "other")
    monkeypatch.setenv("PROMPTMILL_SIGNING_KEY", str(private))
    version = workspace.register()
    stored = str(workspace.stored_bundle(version))
    monkeypatch.setitem(__import__("sys").modules, "pipeline.engine.predicting", None)
    monkeypatch.setenv("PROMPTMILL_TRUSTED_KEYS", str(other))
    with pytest.raises(BundleError, match="is a signature by the key"):
        pyfunc._load_pyfunc(stored)
    with pytest.raises(BundleError, match="is a signature by the key"):
        registry.download_bundle(root=workspace.root, task=TASK, version=version, destination=tmp_path / "bundle")
    monkeypatch.setenv("PROMPTMILL_TRUSTED_KEYS", f"{other}{os.pathsep}{public}")
    with pytest.raises(ImportError):  # verified: the engine would load it now
        pyfunc._load_pyfunc(stored)
    registry.download_bundle(root=workspace.root, task=TASK, version=version, destination=tmp_path / "bundle")


def test_a_key_that_is_not_there_stops_the_registration(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_SIGNING_KEY", "/nowhere/key.pem")
    with pytest.raises(WorkspaceError, match=r"PROMPTMILL_SIGNING_KEY names /nowhere/key\.pem, which cannot be read"):
        workspace.register()
