"""Sealing: authenticated encryption with keys of one tenant, AES-256-GCM or SM4-GCM.

A sealed value, all of it authenticated:

    byte 0        version of this layout, 1
    byte 1        algorithm: 1 AES-256-GCM, 2 SM4-GCM
    bytes 2-5     id of the master key
    bytes 6-17    nonce, random
    rest          ciphertext, as long as the data, and a tag of 16 bytes

The header, the tenant and the purpose are associated data: a value that is moved to another tenant
or another use does not open. Keys come from the master key by HKDF (RFC 5869), with SHA-256 for AES
and SM3 for SM4, one for each tenant. Nonces are random: 2^32 values of one tenant under one master
key keep the chance of a repeated nonce below 2^-32 (NIST SP 800-38D, 8.3).

Sources: NIST SP 800-38D (GCM), GB/T 32907 (SM4), GB/T 32905 (SM3), RFC 8998 (SM4-GCM).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from foundation.errors import ArtifactError, ConfigError, listing, nearest

AES_GCM, SM4_GCM = "aes-gcm", "sm4-gcm"
_CODES = {AES_GCM: 1, SM4_GCM: 2}
_NAMES = {code: name for name, code in _CODES.items()}
_KEY_BYTES = {AES_GCM: 32, SM4_GCM: 16}
_HASHES: dict[str, hashes.HashAlgorithm] = {AES_GCM: hashes.SHA256(), SM4_GCM: hashes.SM3()}
_VERSION = 1
HEADER_BYTES, _NONCE, _TAG = 6, 12, 16
OVERHEAD = HEADER_BYTES + _NONCE + _TAG


@dataclass(frozen=True)
class Header:
    """What the first bytes of a sealed value say: its algorithm, the id of its master key (hex)."""

    algorithm: str
    key_id: str


def require_algorithm(name: str) -> str:
    """The name of an algorithm, checked.

    Raises:
        ConfigError: there is no such algorithm.
    """
    if name not in _CODES:
        raise ConfigError(
            f"no algorithm '{name}'{nearest(name, _CODES)}; algorithms: {listing(_CODES)}"
        )
    return name


def derived(secret: bytes, size: int, algorithm: hashes.HashAlgorithm, *labels: str) -> bytes:
    """`size` bytes of HKDF over a secret; each list of labels gives other bytes."""
    info = b"riskfm" + b"".join(_measured(label) for label in labels)
    return HKDF(algorithm=algorithm, length=size, salt=None, info=info).derive(secret)


def tenant_key(algorithm: str, secret: bytes, tenant: str) -> bytes:
    """The key that seals for one tenant: 32 bytes for AES, 16 for SM4."""
    size = _KEY_BYTES[require_algorithm(algorithm)]
    return derived(secret, size, _HASHES[algorithm], "seal", algorithm, tenant)


def read_header(blob: bytes) -> Header:
    """Algorithm and key of a sealed value.

    Raises:
        ArtifactError: this is no sealed value.
    """
    if len(blob) < OVERHEAD or blob[0] != _VERSION or blob[1] not in _NAMES:
        raise ArtifactError("this is no sealed value: its first bytes say something else")
    return Header(_NAMES[blob[1]], blob[2:HEADER_BYTES].hex())


def header_bytes(header: Header) -> bytes:
    """The first bytes of a sealed value; `read_header` reads them."""
    return bytes([_VERSION, _CODES[header.algorithm]]) + bytes.fromhex(header.key_id)


def seal(header: Header, key: bytes, tenant: str, purpose: str, data: bytes) -> bytes:
    """Encrypt and authenticate.

    Args:
        header: `key_id` of 8 hex digits; written in front of the value.
        key: of `tenant_key` for the header's algorithm.
    """
    first = header_bytes(header)
    nonce = os.urandom(_NONCE)
    return (
        first + nonce + encrypt(header.algorithm, key, nonce, data, _bound(first, tenant, purpose))
    )


def unseal(key: bytes, tenant: str, purpose: str, blob: bytes) -> bytes:
    """What `seal` was given.

    Raises:
        ArtifactError: another key, tenant or purpose, or a changed byte.
    """
    algorithm = read_header(blob).algorithm
    first, nonce = blob[:HEADER_BYTES], blob[HEADER_BYTES : HEADER_BYTES + _NONCE]
    try:
        body = blob[HEADER_BYTES + _NONCE :]
        return decrypt(algorithm, key, nonce, body, _bound(first, tenant, purpose))
    except InvalidTag:
        raise ArtifactError(
            "a sealed value does not open: it was changed, or belongs to another tenant or purpose"
        ) from None


def encrypt(algorithm: str, key: bytes, nonce: bytes, data: bytes, bound: bytes) -> bytes:
    """GCM: ciphertext and tag of 16 bytes; `bound` is associated data."""
    if algorithm == AES_GCM:
        return AESGCM(key).encrypt(nonce, data, bound)
    encryptor = Cipher(algorithms.SM4(key), modes.GCM(nonce)).encryptor()
    encryptor.authenticate_additional_data(bound)
    return encryptor.update(data) + encryptor.finalize() + encryptor.tag


def decrypt(algorithm: str, key: bytes, nonce: bytes, body: bytes, bound: bytes) -> bytes:
    """The data of `encrypt`.

    Raises:
        InvalidTag: anything differs.
    """
    if algorithm == AES_GCM:
        return AESGCM(key).decrypt(nonce, body, bound)
    decryptor = Cipher(algorithms.SM4(key), modes.GCM(nonce, body[-_TAG:])).decryptor()
    decryptor.authenticate_additional_data(bound)
    return decryptor.update(body[:-_TAG]) + decryptor.finalize()


def _bound(first: bytes, tenant: str, purpose: str) -> bytes:
    return first + _measured(tenant) + _measured(purpose)


def _measured(text: str) -> bytes:
    """Bytes with their length in front: no two lists of texts give the same bytes."""
    data = text.encode()
    return len(data).to_bytes(4, "big") + data
