"""Signatures of a bundle's manifest: Ed25519 (RFC 8032), by the library cryptography.

A checksum says that a bundle is the one its manifest describes; a signature says who made that manifest. The signature lies beside the
manifest and not in it, over the manifest's very bytes, so that `openssl pkeyutl -verify -rawin` can check it too.
"""

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.errors import BundleError, WorkspaceError
from pipeline.manifest import MANIFEST_FILE, SIGNATURE_FILE
from pipeline.records import write_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ALGORITHM = "ed25519"
KEY_VARIABLE, TRUSTED_VARIABLE = "PROMPTMILL_SIGNING_KEY", "PROMPTMILL_TRUSTED_KEYS"

_SIGN_AGAIN = "Do not use it; register the bundle again with the right key in PROMPTMILL_SIGNING_KEY."


def signing_key() -> Path | None:
    """The private key file that `PROMPTMILL_SIGNING_KEY` names, if it names one."""
    name = os.environ.get(KEY_VARIABLE)
    return Path(name).expanduser() if name else None


def keys_of_environment() -> tuple[Path, ...]:
    """The public key files that `PROMPTMILL_TRUSTED_KEYS` lists, separated as in PATH."""
    return tuple(Path(name).expanduser() for name in os.environ.get(TRUSTED_VARIABLE, "").split(os.pathsep) if name)


def sign_manifest(bundle: Path, key: Path) -> str:
    """Write the signature of `bundle`'s manifest beside it; returns the id of the key. Raises WorkspaceError for an unusable key."""
    private = _private_key(key)
    signature = base64.b64encode(private.sign((bundle / MANIFEST_FILE).read_bytes())).decode()
    identity = key_id(private.public_key())
    write_json(bundle / SIGNATURE_FILE, {"algorithm": ALGORITHM, "key": identity, "signature": signature})
    return identity


def verify_signature(bundle: Path, trusted: Sequence[Path]) -> str:
    """The id of the trusted key that signed the manifest of `bundle`; the manifest itself must have been verified.

    Raises BundleError when there is no signature, it is of no trusted key, or it does not fit the manifest; WorkspaceError for an
    unusable key file or when `trusted` is empty.
    """
    from cryptography.exceptions import InvalidSignature

    keys = {key_id(key): key for key in map(_public_key, trusted)}
    if not keys:
        raise WorkspaceError(
            f"A signature is required and no public key is trusted. List one in promotion.trusted_keys or {TRUSTED_VARIABLE}."
        )
    path = bundle / SIGNATURE_FILE
    identity, signature = _read_signature(path)
    if identity not in keys:
        raise BundleError(f"{path} is a signature by the key {identity}; trusted are {', '.join(sorted(keys))}. {_SIGN_AGAIN}")
    try:
        keys[identity].verify(signature, (bundle / MANIFEST_FILE).read_bytes())
    except InvalidSignature:
        raise BundleError(f"{path} does not fit {MANIFEST_FILE}: one of them was altered. {_SIGN_AGAIN}") from None
    return identity


def key_id(key: "Ed25519PublicKey") -> str:
    """Hex sha256 of the 32 bytes of a public key."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def _read_signature(path: Path) -> tuple[str, bytes]:
    """Key id and signature bytes; read strictly, as the file comes from a store that nothing protects."""
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{path} does not exist as a plain file, and a signature is required. {_SIGN_AGAIN}")
    try:
        document: Any = json.loads(path.read_bytes())
        record: Mapping[str, Any] = cast(Mapping[str, Any], document) if isinstance(document, dict) else {}
        algorithm, identity, text = (record.get(name) for name in ("algorithm", "key", "signature"))
        if algorithm == ALGORITHM and isinstance(identity, str) and isinstance(text, str):
            return identity, base64.b64decode(text, validate=True)
    except (ValueError, RecursionError):
        pass  # said below, as for a file of another form
    raise BundleError(f"{path} is no record of an {ALGORITHM} signature with `algorithm`, `key` and `signature`. {_SIGN_AGAIN}")


def _private_key(path: Path) -> "Ed25519PrivateKey":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    found = _pem(path, partial(load_pem_private_key, password=None), f"{KEY_VARIABLE} names")
    if not isinstance(found, Ed25519PrivateKey):
        raise WorkspaceError(
            f"{path} holds a {type(found).__name__}, expected an Ed25519 private key: `openssl genpkey -algorithm ed25519`."
        )
    return found


def _public_key(path: Path) -> "Ed25519PublicKey":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    found = _pem(path, load_pem_public_key, f"promotion.trusted_keys or {TRUSTED_VARIABLE} names")
    if not isinstance(found, Ed25519PublicKey):
        raise WorkspaceError(f"{path} holds a {type(found).__name__}, expected an Ed25519 public key: `openssl pkey -pubout`.")
    return found


def _pem(path: Path, load: Any, who: str) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return load(path.read_bytes())
    except OSError as error:
        raise WorkspaceError(f"{who} {path}, which cannot be read ({error.strerror}). Correct the path.") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):  # their texts may quote the file
        raise WorkspaceError(f"{who} {path}, which holds no key in PEM form without a password. Name another file.") from None
