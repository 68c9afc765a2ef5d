"""Certificates of authorities in PEM, as users give them for a guest to trust.

Sources: RFC 7468, section 5 (textual encoding of certificates); X.690, 8.1.3 (lengths in DER).
"""

from __future__ import annotations

import base64
import binascii
import re
import textwrap
from typing import Final

from ramet.errors import UsageError
from ramet.units import KIB, format_bytes

MOST_FILE_BYTES: Final = 1024 * KIB
MOST_CERTIFICATES: Final = 64
_MOST_CERTIFICATE_BYTES: Final = 16 * KIB
_BLOCK: Final = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,40})-----(.*?)-----END \1-----", re.DOTALL)
_SEQUENCE: Final = 0x30


def parse_authorities(content: bytes, file: str) -> tuple[str, ...]:
    """Return the certificates in a PEM file, each once, in one form. Text between them is skipped.

    Raises `UsageError` for a file without one, with a broken one, or with a private key.
    """
    if len(content) > MOST_FILE_BYTES:
        raise UsageError(
            f"{file} is larger than {format_bytes(MOST_FILE_BYTES)}, so it isn't a few certificates"
        )
    found: dict[str, None] = {}
    for label, body in _BLOCK.findall(content.decode("latin-1")):
        if label.endswith("PRIVATE KEY"):
            raise UsageError(
                f"{file} has a private key in it, which no guest needs to trust an authority",
                hint="give a file with the certificate alone",
            )
        if label == "CERTIFICATE":
            found[_normal(body, file)] = None
    if not found:
        is_der = content[:1] == bytes([_SEQUENCE])
        raise UsageError(
            f"{file} has no certificate in PEM",
            hint=f"convert it: openssl x509 -inform der -in {file} -out ca.pem"
            if is_der
            else "it begins with -----BEGIN CERTIFICATE-----",
        )
    if len(found) > MOST_CERTIFICATES:
        raise UsageError(
            f"{file} has {len(found)} certificates",
            hint=f"give those that the guest needs, {MOST_CERTIFICATES} at most",
        )
    return tuple(found)


def _normal(body: str, file: str) -> str:
    """Return a certificate in lines of 64 characters. Raises `UsageError` for what isn't one whole value."""
    broken = UsageError(f"{file} has a certificate that is cut or damaged", hint="get the file again")
    try:
        value = base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        raise broken from None
    if len(value) > _MOST_CERTIFICATE_BYTES or _der_length(value) != len(value):
        raise broken
    lines = textwrap.wrap(base64.b64encode(value).decode(), 64)
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----"])


def _der_length(value: bytes) -> int | None:
    """Return the length that a DER sequence says it has, header included; None if it is none."""
    if len(value) < 2 or value[0] != _SEQUENCE:
        return None
    if value[1] < 0x80:
        return 2 + value[1]
    count = value[1] & 0x7F
    return 2 + count + int.from_bytes(value[2 : 2 + count], "big") if 0 < count <= 4 else None
