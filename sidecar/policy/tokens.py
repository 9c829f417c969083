"""JSON Web Tokens: what a signed token says, and whether to believe it (RFC 7515, 7517, 7518, 7519, 8037). Pure: `now` is Unix time.

Signatures are checked by joserfc with the one algorithm that the token's header names, out of those below, and with a key of that
algorithm's own type. All of them are asymmetric: `none`, and a public key used as a shared secret, have no way in.
"""

import json
import re
import warnings
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass
from enum import Enum
from functools import cache
from types import ModuleType
from typing import Any, Final

KEY_TYPES: Final = {
    **{f"{family}{size}": "RSA" for family in ("RS", "PS") for size in (256, 384, 512)},
    "ES256": "EC",
    "ES384": "EC",
    "ES512": "EC",
    "EdDSA": "OKP",
    "Ed25519": "OKP",
}
"""The algorithms that are taken, and the type of key that each has."""
CURVES: Final = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519", "Ed25519": "Ed25519"}
MAX_TOKEN: Final = 16 * 1024
"""Bytes."""
MAX_KEYS: Final = 128
"""Of one set."""
MIN_RSA_BITS: Final = 2048
LONGEST_NAME: Final = 80
"""Characters of an issuer or a key's name that a sentence repeats."""
_FORM: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

Json = dict[str, Any]


@cache
def _jose() -> tuple[ModuleType, ModuleType, type[Exception]]:
    """Imported at first use: a sidecar that is asked for no token does not pay for it."""
    from joserfc import jwk, jws
    from joserfc.errors import JoseError, SecurityWarning

    # The name EdDSA, which issuers still use.
    warnings.filterwarnings("ignore", category=SecurityWarning, module="joserfc")
    return jwk, jws, JoseError


class Reason(Enum):
    """Why a token is not believed; the names stand in a metric."""

    MISSING = "missing"
    MALFORMED = "malformed"
    ALGORITHM = "algorithm"
    ISSUER = "issuer"
    AUDIENCE = "audience"
    EXPIRED = "expired"
    EARLY = "not_yet_valid"
    SIGNATURE = "signature"
    NO_KEYS = "no_keys"
    NO_RULE = "no_rule"
    """Nobody knows what is asked for."""


class TokenFault(Exception):
    """A token that is not believed; the text says why, and never repeats the token."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it came: read, not believed."""

    text: str
    header: Json
    payload: Json
    raw_payload: str
    """As it stands in the token (base64url)."""

    @property
    def issuer(self) -> str:
        """Empty if it names none."""
        issuer = self.payload.get("iss", "")
        return issuer if isinstance(issuer, str) else ""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key of an issuer."""

    kid: str
    algorithm: str
    """That it is for; empty: any of its type."""
    kind: str
    curve: str
    key: Any


class KeysError(Exception):
    """A key set that cannot be read."""


def read_keys(text: bytes | str) -> tuple[Key, ...]:
    """The keys for signatures in a JWK Set (RFC 7517 §5): RSA of at least 2048 bits, EC and Ed25519; others are left out. Raises KeysError."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise KeysError("this is no JSON") from None
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise KeysError(f'a JWK Set is an object with a list "keys" of at most {MAX_KEYS}')
    return tuple(key for key in map(_read_key, listed) if key is not None)


def _read_key(item: Any) -> Key | None:
    if not isinstance(item, dict) or item.get("use", "sig") != "sig":
        return None
    kind, curve, algorithm, kid = (item.get(name, "") for name in ("kty", "crv", "alg", "kid"))
    if not all(isinstance(value, str) for value in (kind, curve, algorithm, kid)) or kind not in KEY_TYPES.values():
        return None
    if algorithm and KEY_TYPES.get(algorithm) != kind:
        return None
    public = {name: value for name, value in item.items() if name in ("kty", "n", "e", "crv", "x", "y")}
    jwk, _, jose_error = _jose()
    try:
        key = jwk.import_key(public)
        raw: Any = key.raw_value
    except (jose_error, ValueError, TypeError, KeyError):
        return None
    if kind == "RSA" and raw.key_size < MIN_RSA_BITS:
        return None
    return Key(kid, algorithm, kind, curve, key)


def read(text: str) -> Token:
    """What a token says. Raises TokenFault if it is none, or has an algorithm that nobody here believes."""
    if len(text) > MAX_TOKEN:
        raise TokenFault(Reason.MALFORMED, f"the token has {len(text)} bytes; at most {MAX_TOKEN} are read")
    if not _FORM.fullmatch(text):
        raise TokenFault(Reason.MALFORMED, "the token is no signed JWT (HEADER.CLAIMS.SIGNATURE)")
    head, raw_payload, _ = text.split(".")
    header, payload = _object(head, "header"), _object(raw_payload, "claims")
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in KEY_TYPES:
        raise TokenFault(
            Reason.ALGORITHM,
            f"the token's algorithm {_shown(algorithm)} is not taken; those that are: {', '.join(KEY_TYPES)}",
        )
    if not isinstance(header.get("kid", ""), str):
        raise TokenFault(Reason.MALFORMED, "the token's kid is no text")
    if "crit" in header or "b64" in header:
        raise TokenFault(Reason.MALFORMED, "the token asks for an extension (crit) that is not known here")
    for name in ("exp", "nbf", "iat"):
        if name in payload and not _is_time(payload[name]):
            raise TokenFault(Reason.MALFORMED, f"the token's {name} is no time")
    for name in ("iss", "sub"):
        if not isinstance(payload.get(name, ""), str):
            raise TokenFault(Reason.MALFORMED, f"the token's {name} is no text")
    _audiences(payload)
    return Token(text, header, payload, raw_payload)


def _object(part: str, what: str) -> Json:
    try:
        found = json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)), parse_constant=_no_number)
    except (ValueError, Base64Error, RecursionError):
        raise TokenFault(Reason.MALFORMED, f"the token's {what} cannot be read") from None
    if not isinstance(found, dict):
        raise TokenFault(Reason.MALFORMED, f"the token's {what} is no object")
    return found


def _no_number(text: str) -> None:
    raise ValueError(text)


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**53


def _audiences(payload: Json) -> list[str]:
    found = payload.get("aud", [])
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise TokenFault(Reason.MALFORMED, "the token's aud is neither a text nor a list of texts")
    return found


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f'"{text[:LONGEST_NAME]}"'


@dataclass(frozen=True, slots=True)
class Demands:
    """What a provider asks of a token besides a signature of its own."""

    issuer: str = ""
    """Empty: any."""
    skew_s: float = 60.0
    """How far clocks may differ, in seconds."""
    must_expire: bool = False
    max_lifetime_s: float = 0.0
    """Of a token, from `iat` or else from now; 0 is for ever."""

    def last_s(self, token: Token) -> float:
        """Until when a token is good, in Unix time; infinite if it does not expire."""
        expires = token.payload.get("exp", 0)
        return expires + self.skew_s if expires else float("inf")

    def check(self, token: Token, now: float) -> None:
        """Raises TokenFault if it is another's, not yet or no longer good."""
        payload = token.payload
        if self.issuer and token.issuer != self.issuer:
            raise TokenFault(
                Reason.ISSUER, f"the token is by {_shown(token.issuer)}; those of {_shown(self.issuer)} are taken"
            )
        starts, expires = payload.get("nbf", 0), payload.get("exp", 0)
        if starts > now + self.skew_s:
            raise TokenFault(Reason.EARLY, f"the token is good only in {starts - now:.0f} s (nbf)")
        if not expires and (self.must_expire or self.max_lifetime_s):
            raise TokenFault(Reason.MALFORMED, "the token never expires (exp), which is not allowed here")
        if now > self.last_s(token):
            raise TokenFault(Reason.EXPIRED, f"the token expired {now - expires:.0f} s ago (exp)")
        if self.max_lifetime_s and expires - payload.get("iat", now) > self.max_lifetime_s:
            raise TokenFault(Reason.MALFORMED, f"the token lives longer than {self.max_lifetime_s:g} s")


def check_audience(token: Token, audiences: tuple[str, ...]) -> None:
    """Raises TokenFault if the token is for none of these; none listed: for anybody."""
    if audiences and not {_bare(item) for item in audiences} & {_bare(item) for item in _audiences(token.payload)}:
        raise TokenFault(
            Reason.AUDIENCE, f"the token is not for {' or '.join(audiences)[:LONGEST_NAME]} (its aud is for others)"
        )


def _bare(audience: str) -> str:
    """Scheme and last slash make no difference (as in Envoy)."""
    for scheme in ("http://", "https://"):
        audience = audience.removeprefix(scheme)
    return audience.removesuffix("/")


def check_signature(token: Token, keys: tuple[Key, ...]) -> None:
    """Raises TokenFault if it is by none of the keys."""
    if not keys:
        raise TokenFault(Reason.NO_KEYS, "no key of the token's issuer is known here yet")
    algorithm, kid = token.header["alg"], token.header.get("kid", "")
    fitting = [
        key
        for key in keys
        if key.kind == KEY_TYPES[algorithm]
        and key.curve == CURVES.get(algorithm, "")
        and key.algorithm in ("", algorithm)
        and (not kid or not key.kid or key.kid == kid)
    ]
    if not fitting:
        raise TokenFault(
            Reason.SIGNATURE, f"no key of the issuer is known by the token's kid {_shown(kid)} for {algorithm}"
        )
    if not any(_is_by(token, key.key, algorithm) for key in fitting):
        raise TokenFault(Reason.SIGNATURE, "the token's signature is not its issuer's")


def _is_by(token: Token, key: Any, algorithm: str) -> bool:
    _, jws, jose_error = _jose()
    try:
        jws.deserialize_compact(token.text, key, algorithms=[algorithm])
    except (jose_error, ValueError):
        return False
    return True


def claim(payload: Json, path: str) -> Any:
    """A claim by its name, or with dots by the way to it; None if it is not there."""
    found: Any = payload
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def written(value: Any) -> str | None:
    """A claim as a header's value: texts, numbers and truths as they are, what is larger as JSON in base64url; None if it has no form."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value if value.isprintable() and value.isascii() else None
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if value is None:
        return None
    return urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).decode()
