"""Known answers of NIST, GB/T and RFC 8998; what is sealed opens for nobody else."""

from __future__ import annotations

import hashlib
import time

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hmac import HMAC
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import ArtifactError, ConfigError
from serving.safety import ciphers
from serving.safety.secrets import SealingKey, Secrets
from serving.safety.vault import Vault


def test_aes_gcm_answers_as_nist_says() -> None:
    """Test cases 13, 14 and 16 of the GCM specification (McGrew and Viega), AES-256."""
    zero = bytes(32)
    assert ciphers.encrypt("aes-gcm", zero, bytes(12), b"", b"").hex() == (
        "530f8afbc74536b9a963b4f1c4cb738b"
    )
    assert ciphers.encrypt("aes-gcm", zero, bytes(12), bytes(16), b"").hex() == (
        "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"
    )
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
    nonce = bytes.fromhex("cafebabefacedbaddecaf888")
    data = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    bound = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    sealed = ciphers.encrypt("aes-gcm", key, nonce, data, bound)
    assert sealed.hex() == (
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        "76fc6ece0f4e1768cddf8853bb2d551b"
    )
    assert ciphers.decrypt("aes-gcm", key, nonce, sealed, bound) == data


def test_sm4_and_sm3_answer_as_their_standards_say() -> None:
    """GB/T 32907 annex A.1, GB/T 32905 annex A, RFC 8998 appendix A.1."""
    key = bytes.fromhex("0123456789abcdeffedcba9876543210")
    block = Cipher(algorithms.SM4(key), modes.ECB()).encryptor()
    assert block.update(key).hex() == "681edf34d206965e86b3e94f536e4246"
    digest = hashes.Hash(hashes.SM3())
    digest.update(b"abc")
    assert digest.finalize().hex() == (
        "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"
    )
    nonce = bytes.fromhex("00001234567800000000abcd")
    bound = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    data = b"".join(bytes([b]) * 8 for b in b"\xaa\xbb\xcc\xdd\xee\xff\xee\xaa")
    sealed = ciphers.encrypt("sm4-gcm", key, nonce, data, bound)
    assert sealed.hex() == (
        "17f399f08c67d5ee19d0dc9969c4bb7d5fd46fd3756489069157b282bb200735"
        "d82710ca5c22f0ccfa7cbf93d496ac15a56834cbcf98c397b4024a2691233b8d"
        "83de3541e4c2b58177e065a9bf7b62ec"
    )
    assert ciphers.decrypt("sm4-gcm", key, nonce, sealed, bound) == data


def test_hkdf_is_that_of_rfc_5869() -> None:
    """Derived by hand from HMAC: extract with an empty salt, expand once."""
    info = b"riskfm" + b"".join(len(x).to_bytes(4, "big") + x for x in (b"seal", b"t"))
    for kind in (hashes.SHA256(), hashes.SM3()):

        def code(key: bytes, data: bytes, kind=kind) -> bytes:
            found = HMAC(key, kind)
            found.update(data)
            return found.finalize()

        expected = code(code(bytes(32), b"s" * 32), info + b"\x01")
        assert ciphers.derived(b"s" * 32, 32, kind, "seal", "t") == expected
        assert ciphers.derived(b"s" * 32, 32, kind, "sealt") != expected


def secrets_of(*names: str) -> Secrets:
    keys = tuple(SealingKey(n * 4, "", hashlib.sha256(n.encode()).digest()) for n in names)
    return Secrets(hashlib.sha256(b"root").digest(), keys)


ALGORITHMS = st.sampled_from(["aes-gcm", "sm4-gcm"])
TEXTS = st.text(max_size=20)


@given(ALGORITHMS, TEXTS, TEXTS, st.binary(max_size=300))
@settings(deadline=None, max_examples=40)
def test_what_is_sealed_opens_and_says_nothing(algorithm, tenant, purpose, data) -> None:
    vault = Vault(secrets_of("aa"), algorithm)
    blob = vault.seal(tenant, purpose, data)
    assert vault.open(tenant, purpose, blob) == data
    assert len(blob) == len(data) + ciphers.OVERHEAD
    assert blob != vault.seal(tenant, purpose, data)
    if len(data) > 8:
        assert data not in blob
    for other in ((tenant + "x", purpose), (tenant, purpose + "x"), (purpose + "y", tenant)):
        with pytest.raises(ArtifactError, match="does not open"):
            vault.open(*other, blob)


@pytest.mark.parametrize("algorithm", ["aes-gcm", "sm4-gcm"])
def test_every_changed_byte_fails(algorithm: str) -> None:
    vault = Vault(secrets_of("aa", "bb"), algorithm)
    blob = vault.seal("acme", "p", b"0123456789")
    for at in range(len(blob)):
        for flip in (1, 128):
            changed = blob[:at] + bytes([blob[at] ^ flip]) + blob[at + 1 :]
            with pytest.raises((ArtifactError, ConfigError)):
                vault.open("acme", "p", changed)
    for cut in range(len(blob)):
        with pytest.raises(ArtifactError):
            vault.open("acme", "p", blob[:cut])
    # Another key of ours, another algorithm of ours: authenticated too.
    swapped = blob[:2] + bytes.fromhex("aaaaaaaa") + blob[6:]
    with pytest.raises(ArtifactError, match="does not open"):
        vault.open("acme", "p", swapped)
    with pytest.raises(InvalidTag):
        ciphers.decrypt(
            algorithm, bytes(32 if algorithm == "aes-gcm" else 16), bytes(12), blob, b""
        )


def test_rotation_seals_with_the_newest_and_opens_all() -> None:
    old = Vault(secrets_of("aa"))
    blob = old.seal("acme", "p", b"data")
    new = Vault(secrets_of("aa", "bb"), "sm4-gcm")
    assert new.open("acme", "p", blob) == b"data" and not new.sealed_newest(blob)
    moved = new.reseal("acme", "p", blob)
    assert moved != blob and new.sealed_newest(moved) and new.reseal("acme", "p", moved) == moved
    alone = Vault(secrets_of("bb"))
    assert alone.open("acme", "p", moved) == b"data"
    with pytest.raises(ConfigError, match="key aaaaaaaa, which is not among"):
        alone.open("acme", "p", blob)
    with pytest.raises(ArtifactError):
        new.reseal("other", "p", blob)
    with pytest.raises(ConfigError, match="did you mean 'sm4-gcm'"):
        Vault(secrets_of("aa"), "sm4-gmc")


def test_keys_of_tenants_and_algorithms_differ() -> None:
    root = b"r" * 32
    keys = {ciphers.tenant_key(a, root, t)[:16] for a in ("aes-gcm", "sm4-gcm") for t in "ab"}
    assert len(keys) == 4
    assert len(ciphers.tenant_key("aes-gcm", root, "a")) == 32


def test_sealing_is_fast_enough_for_the_request_path() -> None:
    vault = Vault(secrets_of("aa"))
    begin = time.perf_counter()
    for _ in range(200):
        vault.open("acme", "p", vault.seal("acme", "p", b"x" * 4096))
    assert (time.perf_counter() - begin) / 200 < 0.02
