"""Which registered bundles must be signed, and by whom: what params.yaml and the environment say.

`promotion.require_signature` of the task in this checkout, with `promotion.trusted_keys`, and the variable PROMPTMILL_TRUSTED_KEYS, which
counts everywhere: a consumer of a version has the registry and no params.yaml.
"""

from functools import lru_cache
from pathlib import Path

from pipeline.layout import PARAMS_FILE
from pipeline.params import load
from pipeline.signing import keys_of_environment, sign_manifest, signing_key, verify_signature


def verify_when_required(bundle: Path, *, root: Path, task: str) -> None:
    """Verify the signature of a verified bundle where one is required; raises BundleError, or ParamsError for a broken params.yaml."""
    keys, required = keys_of_environment(), False
    if (root / PARAMS_FILE).is_file():
        of_params, required = _policy(root, task)
        keys += of_params
    if required or keys_of_environment():
        verify_signature(bundle, keys)


def verify_for_consumer(bundle: Path) -> None:
    """The same for a process that has no checkout: a signature is required as soon as the environment names trusted keys."""
    keys = keys_of_environment()
    if keys:
        verify_signature(bundle, keys)


def sign_when_asked(bundle: Path) -> None:
    """Sign the bundle's manifest when the environment names a private key."""
    key = signing_key()
    if key is not None:
        sign_manifest(bundle, key)


def _policy(root: Path, task: str) -> tuple[tuple[Path, ...], bool]:
    path = root / PARAMS_FILE
    status = path.stat()
    return _read_policy(path, task, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _read_policy(path: Path, task: str, _modified: int, _size: int) -> tuple[tuple[Path, ...], bool]:
    """Trusted keys and whether a signature is required; a task that params.yaml does not know requires nothing."""
    params = load(path).get(task)
    if params is None:
        return (), False
    return tuple(path.parent / key for key in params.promotion.trusted_keys), params.promotion.require_signature
