"""Sign a bundle's archive and verify it, with detached signatures that `openssl` can check, so a board needs no toolchain.

A signature is the raw bytes that `openssl dgst -sha256 -sign` writes for P-256 and RSA (PKCS #1 v1.5), with `-sha384` for
P-384 and `-sha512` for P-521; for Ed25519, of `openssl pkeyutl -sign -rawin`. It covers all bytes of the archive, so it is
checked before anything inside is read.
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
PASSWORD_VARIABLE = "TOOLCHAIN_KEY_PASSWORD"  # noqa: S105  name of an environment variable
ACCEPTED_KEYS = "elliptic curve (P-256, P-384, P-521), Ed25519 or RSA of at least 3072 bits, as PEM"
ACCEPTED_CURVES = {"secp256r1", "secp384r1", "secp521r1"}
MIN_RSA_BITS = 3072
MAX_FILE_BYTES = 1 << 16  # of a key or a signature
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


def signature_path(archive: Path) -> Path:
    """Return the path of an archive's signature, beside it."""
    return archive.with_name(archive.name + SIGNATURE_SUFFIX)


def sign(archive: Path, body: bytes, key: Path) -> Path:
    """Write a signature beside an archive.

    Args:
        archive: path of the archive.
        body: the archive's bytes, as they were read and checked.
        key: PEM of a private key; if it is encrypted, its password is in the environment (`TOOLCHAIN_KEY_PASSWORD`).

    Returns:
        the signature's path.

    Raises:
        ToolchainError: a file is missing, or the key is not accepted.
    """
    private_key = _read_private_key(key)
    with files.open_atomic(signature_path(archive)) as out:
        out.write(_sign(private_key, body))
    return signature_path(archive)


@dataclass(frozen=True, kw_only=True)
class Signer:
    """PEM files to sign with."""

    key: Path
    certificate: Path | None = None  # X.509 of the key, where the receiver checks certificates


def sign_detached(body: bytes, key: Path, kinds: Collection[str]) -> bytes:
    """Return a detached signature.

    Args:
        body: the bytes to sign.
        key: PEM of a private key.
        kinds: of keys that the receiver can check: "RSA", "P-256".

    Raises:
        ToolchainError: the key is missing, not accepted, or of a kind that the receiver cannot check.
    """
    private_key = _read_private_key(key)
    is_p256 = isinstance(private_key, ec.EllipticCurvePrivateKey) and private_key.curve.name == "secp256r1"
    kind = "P-256" if is_p256 else "RSA" if isinstance(private_key, rsa.RSAPrivateKey) else ""
    if kind not in kinds:
        raise ToolchainError(
            f"the update system cannot check signatures of {key} ({fingerprint(private_key.public_key())}); "
            f"accepted without a certificate: {', '.join(sorted(kinds))}"
        )
    return _sign(private_key, body)


def sign_cms(body: bytes, signer: Signer) -> bytes:
    """Return a detached CMS signature (RFC 5652) in DER, as `openssl cms -sign -binary` writes it.

    Raises:
        ToolchainError: key or certificate is missing or unreadable, or they do not belong together.
    """
    assert signer.certificate
    private_key = _read_private_key(signer.key)
    try:
        certificate = x509.load_pem_x509_certificate(_read_limited(signer.certificate, "a certificate"))
    except ValueError as reason:
        raise ToolchainError(f"{signer.certificate} is not an X.509 certificate in PEM") from reason
    if fingerprint(certificate.public_key()) != fingerprint(private_key.public_key()):  # type: ignore[arg-type]
        raise ToolchainError(f"{signer.certificate} is not the certificate of {signer.key}")
    if isinstance(private_key, ed25519.Ed25519PrivateKey):
        raise ToolchainError(f"{signer.key}: update systems do not check Ed25519; use RSA or an elliptic curve")
    builder = pkcs7.PKCS7SignatureBuilder().set_data(body).add_signer(certificate, private_key, hashes.SHA256())
    options = [pkcs7.PKCS7Options.Binary, pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.NoCapabilities]
    return builder.sign(serialization.Encoding.DER, options)


def verify(body: bytes, signature: Path, key: Path) -> str:
    """Check that exactly these bytes were signed with the private half of `key`.

    Args:
        body: the signed bytes.
        signature: path of the detached signature.
        key: PEM of a public key.

    Returns:
        the kind of key and its fingerprint.

    Raises:
        ToolchainError: unsigned, signed by another key, altered since, or the key is not accepted.
    """
    public_key = _read_public_key(key)
    if not signature.is_file():
        raise ToolchainError(
            f"the archive is not signed: {signature} does not exist; `toolchain sign` writes it beside the archive"
        )
    try:
        _verify(public_key, _read_limited(signature, "a signature"), body)
    except InvalidSignature as reason:
        raise ToolchainError(
            f"{signature} does not match: the archive was altered or truncated since it was signed, or it was not signed "
            f"with the private key of {key} ({fingerprint(public_key)}); the archive was not unpacked"
        ) from reason
    return fingerprint(public_key)


def fingerprint(key: PublicKey) -> str:
    """Return the kind of a key and the first 16 hex digits of the SHA-256 over its DER encoding."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    kind = "Ed25519"
    if isinstance(key, ec.EllipticCurvePublicKey):
        kind = f"EC {key.curve.name}"
    elif isinstance(key, rsa.RSAPublicKey):
        kind = f"RSA {key.key_size}"
    return f"{kind}, sha256:{hashlib.sha256(der).hexdigest()[:16]}"


def _hash_for_curve(curve: ec.EllipticCurve) -> hashes.HashAlgorithm:
    """Return a hash that is as strong as the curve."""
    return {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384()}.get(curve.name, hashes.SHA512())


def _sign(key: PrivateKey, body: bytes) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(body, ec.ECDSA(_hash_for_curve(key.curve)))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(body, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(body)


def _verify(key: PublicKey, signature: bytes, body: bytes) -> None:
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, body, ec.ECDSA(_hash_for_curve(key.curve)))
    elif isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, body, padding.PKCS1v15(), hashes.SHA256())
    else:
        key.verify(signature, body)


def _read_limited(path: Path, expected: str) -> bytes:
    """Read a file of at most MAX_FILE_BYTES; messages say what was `expected`, such as "a certificate"."""
    try:
        with path.open("rb") as file:
            body = file.read(MAX_FILE_BYTES + 1)
    except OSError as reason:
        raise ToolchainError(f"cannot read {path}: {reason.strerror}; give {expected}") from reason
    if len(body) > MAX_FILE_BYTES:
        raise ToolchainError(f"{path} is too large for {expected} (at most {MAX_FILE_BYTES >> 10} KiB)")
    return body


def _read_private_key(path: Path) -> PrivateKey:
    body, password = _read_limited(path, "a private key"), os.environ.get(PASSWORD_VARIABLE)
    try:
        key = serialization.load_pem_private_key(body, password.encode() if password else None)
    except TypeError as reason:  # a password is missing, or given for a key that has none
        problem = f"not encrypted; unset {PASSWORD_VARIABLE}"
        if not password:
            problem = f"encrypted; set its password in {PASSWORD_VARIABLE}"
        raise ToolchainError(f"{path} is {problem}") from reason
    except (ValueError, UnsupportedAlgorithm) as reason:
        if b"PUBLIC KEY" in body:
            raise ToolchainError(f"{path} is a public key; signing needs the private key") from reason
        cause = f", or {PASSWORD_VARIABLE} is wrong" if b"ENCRYPTED" in body else ""
        raise ToolchainError(f"{path} is not a readable private key{cause}; accepted: {ACCEPTED_KEYS}") from reason
    if not isinstance(key, PrivateKey) or not _is_accepted(key.public_key()):
        raise _unsupported_key(path, key)
    return key


def _read_public_key(path: Path) -> PublicKey:
    body = _read_limited(path, "a public key")
    try:
        key = serialization.load_pem_public_key(body)
    except (ValueError, UnsupportedAlgorithm) as reason:
        if b"PRIVATE KEY" in body:
            raise ToolchainError(
                f"{path} is a private key; verifying needs the public key: openssl pkey -in {path} -pubout -out public.pem"
            ) from reason
        raise ToolchainError(f"{path} is not a readable public key; accepted: {ACCEPTED_KEYS}") from reason
    if not isinstance(key, PublicKey) or not _is_accepted(key):
        raise _unsupported_key(path, key)
    return key


def _is_accepted(key: PublicKey) -> bool:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.curve.name in ACCEPTED_CURVES
    return not isinstance(key, rsa.RSAPublicKey) or key.key_size >= MIN_RSA_BITS


def _unsupported_key(path: Path, key: object) -> ToolchainError:
    bits = f" of {key.key_size} bits" if isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey) else ""
    curve = f" on {key.curve.name}" if isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) else ""
    given = type(key).__name__.strip("_").removesuffix("PrivateKey").removesuffix("PublicKey")
    return ToolchainError(f"{path} holds a key that is not supported ({given}{bits}{curve}); accepted: {ACCEPTED_KEYS}")
