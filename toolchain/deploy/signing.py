"""Detached signatures over a bundle's archive, of the kinds that `openssl` checks too, so a board needs nothing of ours.

A signature is the raw bytes that `openssl dgst -sha256 -sign` writes for P-256 and RSA (PKCS #1 v1.5), with `-sha384` for
P-384 and `-sha512` for P-521; for Ed25519 those of `openssl pkeyutl -sign -rawin`. It covers the archive byte by byte, so it
is checked before anything inside is read.
"""

import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import pkcs7

from toolchain.core import files
from toolchain.core.errors import ToolchainError

SIGNATURE_SUFFIX = ".sig"
PASSWORD_VARIABLE = "TOOLCHAIN_KEY_PASSWORD"  # noqa: S105  of an environment variable
ACCEPTED_KEYS = "elliptic curve (P-256, P-384, P-521), Ed25519 or RSA of at least 3072 bits, as PEM"
ACCEPTED_CURVES = {"secp256r1", "secp384r1", "secp521r1"}
MIN_RSA_BITS = 3072
MAX_FILE_BYTES = 1 << 16  # of a key or a signature
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


def signature_path(archive: Path) -> Path:
    """Where an archive's signature lies."""
    return archive.with_name(archive.name + SIGNATURE_SUFFIX)


def sign(archive: Path, body: bytes, key: Path) -> Path:
    """Writes a signature beside an archive.

    Args:
        body: the archive's bytes, as they were read and checked.
        key: PEM of a private key; where it is encrypted, its password is in the environment (`TOOLCHAIN_KEY_PASSWORD`).

    Raises:
        ToolchainError: a file is missing, or the key is none that is accepted.
    """
    secret = _private(key)
    with files.open_atomic(signature_path(archive)) as out:
        out.write(_signature(secret, body))
    return signature_path(archive)


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Who signs: PEM files."""

    key: Path
    certificate: Path | None = None  # X.509 of the key, where the receiver checks those


def sign_detached(body: bytes, key: Path, kinds: Collection[str]) -> bytes:
    """A signature as its bytes.

    Args:
        kinds: of keys that the receiver can check: "RSA", "P-256".

    Raises:
        ToolchainError: the key is missing, none that is accepted, or of another kind.
    """
    secret = _private(key)
    kind = "P-256" if isinstance(secret, ec.EllipticCurvePrivateKey) and secret.curve.name == "secp256r1" else ""
    if (kind or ("RSA" if isinstance(secret, rsa.RSAPrivateKey) else "")) not in kinds:
        raise ToolchainError(
            f"{key} ({fingerprint(secret.public_key())}) is of a kind that the update system cannot check; "
            f"accepted without a certificate: {', '.join(sorted(kinds))}"
        )
    return _signature(secret, body)


def sign_cms(body: bytes, signer: Signer) -> bytes:
    """A detached CMS signature (RFC 5652) in DER, as `openssl cms -sign -binary` writes it.

    Raises:
        ToolchainError: key or certificate is missing or unreadable, or they do not belong together.
    """
    assert signer.certificate
    secret = _private(signer.key)
    try:
        certificate = x509.load_pem_x509_certificate(_small(signer.certificate, "a certificate"))
    except ValueError as reason:
        raise ToolchainError(f"{signer.certificate} is not an X.509 certificate in PEM") from reason
    if fingerprint(certificate.public_key()) != fingerprint(secret.public_key()):  # type: ignore[arg-type]
        raise ToolchainError(f"{signer.certificate} is not the certificate of {signer.key}")
    if isinstance(secret, ed25519.Ed25519PrivateKey):
        raise ToolchainError(f"{signer.key}: update systems do not check Ed25519; use RSA or an elliptic curve")
    made = pkcs7.PKCS7SignatureBuilder().set_data(body).add_signer(certificate, secret, hashes.SHA256())
    wanted = [pkcs7.PKCS7Options.Binary, pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.NoCapabilities]
    return made.sign(serialization.Encoding.DER, wanted)


def verify(body: bytes, signature: Path, key: Path) -> str:
    """Makes sure that whoever holds the private half of `key` signed exactly these bytes.

    Returns:
        what kind of key it is, with its fingerprint.

    Raises:
        ToolchainError: unsigned, signed by another key, altered since, or the key is none that is accepted.
    """
    public = _public(key)
    if not signature.is_file():
        raise ToolchainError(
            f"{signature} is not there: nobody signed this archive; `toolchain sign` writes it beside the archive"
        )
    try:
        _verify(public, _small(signature, "a signature"), body)
    except InvalidSignature as reason:
        raise ToolchainError(
            f"{signature} does not fit: the archive was altered or cut since it was signed, or it was signed with another "
            f"key than that of {key} ({fingerprint(public)}); nothing of it was opened"
        ) from reason
    return fingerprint(public)


def fingerprint(key: PublicKey) -> str:
    """Kind and first digits of the SHA-256 over the key's DER encoding."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    kind = "Ed25519"
    if isinstance(key, ec.EllipticCurvePublicKey):
        kind = f"EC {key.curve.name}"
    elif isinstance(key, rsa.RSAPublicKey):
        kind = f"RSA {key.key_size}"
    return f"{kind}, sha256:{hashlib.sha256(der).hexdigest()[:16]}"


def _hash_of(curve: ec.EllipticCurve) -> hashes.HashAlgorithm:
    """As strong as the curve."""
    return {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384()}.get(curve.name, hashes.SHA512())


def _signature(key: PrivateKey, body: bytes) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(body, ec.ECDSA(_hash_of(key.curve)))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(body, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(body)


def _verify(key: PublicKey, signature: bytes, body: bytes) -> None:
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, body, ec.ECDSA(_hash_of(key.curve)))
    elif isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, body, padding.PKCS1v15(), hashes.SHA256())
    else:
        key.verify(signature, body)


def _small(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            body = file.read(MAX_FILE_BYTES + 1)
    except OSError as reason:
        raise ToolchainError(f"cannot read {path}: {reason.strerror}; {what} is wanted") from reason
    if len(body) > MAX_FILE_BYTES:
        raise ToolchainError(f"{path} is larger than {what} can be")
    return body


def _private(path: Path) -> PrivateKey:
    body, password = _small(path, "a private key"), os.environ.get(PASSWORD_VARIABLE)
    try:
        key = serialization.load_pem_private_key(body, password.encode() if password else None)
    except TypeError as reason:  # a password is missing, or one too many
        wanted = "is not encrypted, unset" if password else "is encrypted, put its password into"
        raise ToolchainError(f"{path} {wanted} {PASSWORD_VARIABLE}") from reason
    except (ValueError, UnsupportedAlgorithm) as reason:
        if b"PUBLIC KEY" in body:
            raise ToolchainError(f"{path} is a public key; signing takes the private one") from reason
        cause = f" (or {PASSWORD_VARIABLE} is wrong)" if b"ENCRYPTED" in body else ""
        raise ToolchainError(
            f"{path} is not a private key that can be read{cause}; accepted: {ACCEPTED_KEYS}"
        ) from reason
    if not isinstance(key, PrivateKey) or not _accepted(key.public_key()):
        raise _of_another_kind(path, key)
    return key


def _public(path: Path) -> PublicKey:
    body = _small(path, "a public key")
    try:
        key = serialization.load_pem_public_key(body)
    except (ValueError, UnsupportedAlgorithm) as reason:
        if b"PRIVATE KEY" in body:
            raise ToolchainError(
                f"{path} is a private key; checking takes the public one: openssl pkey -in {path} -pubout -out public.pem"
            ) from reason
        raise ToolchainError(f"{path} is not a public key that can be read; accepted: {ACCEPTED_KEYS}") from reason
    if not isinstance(key, PublicKey) or not _accepted(key):
        raise _of_another_kind(path, key)
    return key


def _accepted(key: PublicKey) -> bool:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.curve.name in ACCEPTED_CURVES
    return not isinstance(key, rsa.RSAPublicKey) or key.key_size >= MIN_RSA_BITS


def _of_another_kind(path: Path, key: object) -> ToolchainError:
    bits = f" of {key.key_size} bits" if isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey) else ""
    curve = f" on {key.curve.name}" if isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) else ""
    given = type(key).__name__.strip("_").removesuffix("PrivateKey").removesuffix("PublicKey")
    return ToolchainError(f"{path} holds a key of another kind ({given}{bits}{curve}); accepted: {ACCEPTED_KEYS}")
