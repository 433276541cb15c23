"""Sealing the keys of requests, and opening them again when the work begins."""

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
from msgspec.structs import replace

from imageopsd.keys import files
from imageopsd.model.errors import InvalidRequest, Unavailable
from imageopsd.model.image import CustomerEncryptionKey
from imageopsd.model.keys import (
    KEY_BYTES,
    Keys,
    checked_key,
    is_key,
    key_from_text,
    key_sha256,
    keys_of,
    with_keys,
    wrapped_from_text,
)
from imageopsd.model.requests import AnyRequest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

R = TypeVar("R", bound=AnyRequest)

DIRECTORY = "keys"
SEAL_KEY = "seal.key"
"""32 random bytes."""
WRAPPING_KEY = "wrapping.pem"
"""An RSA-2048 private key (PKCS #8)."""

_VERSION = b"\x01"
_NONCE_BYTES = 12
_CONTEXT = b"imageopsd sealed keys 1\0"
_UNOPENED = (
    "Invalid value for field '{}'. The key that came with the request cannot be opened: it was sealed for another "
    "request, or keys/seal.key in data_dir has changed since. Send the request again, with its key."
)


class Keyring:
    """The keys in `keys/` of a data directory; each is made when it is first needed. Its methods raise InvalidRequest
    for what the caller did wrong, and Unavailable while the files cannot be used. They read a file once, and block for
    no longer than that and a millisecond of RSA.

    A seal is AES-256-GCM under `seal.key` and bound to the request's fingerprint: found in a backup, it opens nothing
    but the very request it came with. `cryptography` is loaded when it is needed: a daemon without customer keys shall
    not pay its memory."""

    def __init__(self, data_dir: Path) -> None:
        self._directory = data_dir / DIRECTORY
        self._seal_key: bytes | None = None
        self._wrapping_key: RSAPrivateKey | None = None

    def sealed(self, request: R) -> R:
        """The request with its keys sealed and named only by their SHA-256; one that has them sealed already as it is,
        if they can be opened."""
        named = dict(keys_of(request))
        if request.keys is not None:
            self.opened(request)
            return request
        if not named:
            return request
        keys = {field: self._key(field, key) for field, key in named.items()}
        bare = with_keys(request, lambda field, _: CustomerEncryptionKey(sha256=key_sha256(keys[field])))
        return replace(bare, keys=self._seal(msgspec.json.encode(keys), bare.fingerprint()))

    def opened(self, request: AnyRequest) -> Keys:
        """The keys of a sealed request. Raises InvalidRequest if they are not whole or not its own."""
        named = dict(keys_of(request))
        if not named and request.keys is None:
            return {}
        field = next(iter(named), "job.keys")
        if any(key.raw_key or key.rsa_encrypted_key for key in named.values()):
            raise InvalidRequest("job.keys", "Invalid value for field 'job.keys'. It belongs to keys that are sealed.")
        try:
            plain = self._open(request.keys or "", request.fingerprint())
            keys = msgspec.json.decode(plain, type=dict[str, bytes])
        except ValueError:
            raise InvalidRequest(field, _UNOPENED.format(field)) from None
        if named.keys() != keys.keys() or not all(is_key(keys[name], key.sha256) for name, key in named.items()):
            raise InvalidRequest(field, _UNOPENED.format(field))
        return keys

    def public_key(self) -> bytes:
        """What callers wrap an `rsaEncryptedKey` with, as PEM."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        try:
            public = self._unwrapper(make=True).public_key()
        except OSError as error:
            raise _unusable(error) from error
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    # ----------------------------------------------------------------------------------------------- one key

    def _key(self, field: str, key: CustomerEncryptionKey) -> bytes:
        if key.raw_key is not None:
            return key_from_text(f"{field}.rawKey", key.raw_key.reveal())
        if key.rsa_encrypted_key is not None:
            where = f"{field}.rsaEncryptedKey"
            return checked_key(where, self._unwrapped(where, wrapped_from_text(where, key.rsa_encrypted_key.reveal())))
        raise InvalidRequest.missing(
            f"{field}.rawKey", "Expected the key; that of an earlier request is not kept once its operation has ended"
        )

    def _unwrapped(self, field: str, wrapped: bytes) -> bytes:
        """As Compute has it: OAEP with SHA-1, in the mask generation too. Every failure is told in the same words, so
        that nobody learns from them (Manger's attack, RFC 8017, 7.1.2)."""
        from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
        from cryptography.hazmat.primitives.hashes import SHA1

        sha1 = SHA1()  # noqa: S303 - not for collisions: OAEP does not depend on them
        try:
            return self._unwrapper().decrypt(wrapped, OAEP(mgf=MGF1(sha1), algorithm=sha1, label=None))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _unusable(error) from error
        except ValueError:
            pass
        raise InvalidRequest(
            field,
            f"Invalid value for field '{field}'. It is not wrapped with this daemon's key, the one that "
            "`imageopsd keys public` shows.",
        )

    def _unwrapper(self, *, make: bool = False) -> "RSAPrivateKey":
        """Raises OSError, FileNotFoundError if there is none yet and none is to be made."""
        if self._wrapping_key is None:
            from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
            from cryptography.hazmat.primitives.serialization import load_pem_private_key

            path = self._directory / WRAPPING_KEY
            pem = files.read_or_make(path, _new_wrapping_key) if make else files.read(path)
            try:
                key = load_pem_private_key(pem, None)
            except (ValueError, TypeError) as error:
                raise OSError(f"'{path}' holds no private key") from error
            if not isinstance(key, RSAPrivateKey):
                raise OSError(f"'{path}' holds no RSA key")
            self._wrapping_key = key
        return self._wrapping_key

    # ---------------------------------------------------------------------------------------------- the seal

    def _seal(self, plain: bytes, fingerprint: bytes) -> str:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        # random nonces: the birthday bound of 2^32 seals is far beyond one daemon's requests
        nonce = os.urandom(_NONCE_BYTES)
        sealed = AESGCM(self._sealing_key()).encrypt(nonce, plain, _CONTEXT + fingerprint)
        return base64.b64encode(_VERSION + nonce + sealed).decode()

    def _open(self, text: str, fingerprint: bytes) -> bytes:
        """Raises ValueError."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        blob = base64.b64decode(text, validate=True)
        nonce, sealed = blob[1 : 1 + _NONCE_BYTES], blob[1 + _NONCE_BYTES :]
        if blob[:1] != _VERSION or len(nonce) < _NONCE_BYTES:
            raise ValueError("no seal of this version")
        try:
            return AESGCM(self._sealing_key()).decrypt(nonce, sealed, _CONTEXT + fingerprint)
        except InvalidTag:
            raise ValueError("sealed with another key, or for another request") from None

    def _sealing_key(self) -> bytes:
        if self._seal_key is None:
            path = self._directory / SEAL_KEY
            try:
                key = files.read_or_make(path, lambda: os.urandom(KEY_BYTES))
            except OSError as error:
                raise _unusable(error) from error
            if len(key) != KEY_BYTES:
                raise _unusable(OSError(f"'{path}' holds no key of {KEY_BYTES} bytes"))
            self._seal_key = key
        return self._seal_key


def _new_wrapping_key() -> bytes:
    from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _unusable(error: OSError) -> Unavailable:
    return Unavailable(f"Customer keys cannot be taken: {error.strerror or error}", retry_after=30)
