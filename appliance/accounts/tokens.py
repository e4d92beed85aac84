"""Access tokens (JWT, HS256) and refresh tokens: making, verifying, deriving. Nothing here is stored.

An access token says who it is for; what its user may do is looked up in the snapshot, never read from the
token. A refresh token is `rt_` and base64url of

    16 bytes session id · 4 bytes generation · 32 bytes key · 12 bytes proof that we made it

The key of generation n+1 is HMAC(secret, token n · session id · n+1): who repeats a refresh gets the same
successor, though nothing of it is stored but its digest. The proof lets invented tokens be refused without
a look into the database.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

import jwt

from appliance.accounts.actor import UserFacts
from appliance.accounts.api_keys import digest_of
from appliance.base.clock import Clock
from appliance.base.errors import Unauthenticated

ALGORITHMS: Final = ["HS256"]  # the list is fixed: the token's header does not choose
CLOCK_SKEW_S: Final = 5
MAX_TOKEN_CHARACTERS: Final = 4096
MAX_VERIFIED: Final = 10_000
REFRESH_START: Final = "rt_"
_SESSION_BYTES, _GENERATION_BYTES, _KEY_BYTES, _PROOF_BYTES = 16, 4, 32, 12
_REFRESH_BYTES: Final = _SESSION_BYTES + _GENERATION_BYTES + _KEY_BYTES + _PROOF_BYTES
_REQUIRED: Final = ["exp", "iat", "nbf", "sub", "sid", "jti"]


@dataclass(frozen=True, slots=True)
class Claims:
    """What an access token says.

    Attributes:
        user_id: For whom it was made.
        session_id: The login that it comes from.
        expires_at_s: Seconds since 1970.
    """

    user_id: str
    session_id: str
    expires_at_s: float


class AccessTokens:
    """Makes and verifies access tokens; verified ones are remembered by their digest.

    Args:
        secret: JWT_SECRET.
        previous: JWT_SECRET_PREVIOUS, which only verifies; "" = none.
        lifetime_s: JWT_EXPIRATION in seconds.
    """

    def __init__(self, secret: str, *, previous: str = "", lifetime_s: float, clock: Clock) -> None:
        self._secrets = [secret, previous] if previous else [secret]
        self.lifetime_s = lifetime_s
        self._clock = clock
        self._verified: OrderedDict[bytes, Claims] = OrderedDict()
        self._of_session: dict[str, set[bytes]] = {}

    def issue(self, user: UserFacts, session_id: str) -> tuple[str, float]:
        """Make an access token.

        Returns:
            (the token, when it expires in seconds since 1970)
        """
        now_s = int(self._clock.now_s())
        expires_at_s = now_s + int(self.lifetime_s)
        claims: dict[str, Any] = {
            "user_id": user.id,
            "email": user.email,
            "is_admin": user.is_admin,
            "exp": expires_at_s,
            "iat": now_s,
            "nbf": now_s,
            "sub": user.id,
            "sid": session_id,
            "jti": secrets.token_hex(8),
        }
        return jwt.encode(claims, self._secrets[0], algorithm=ALGORITHMS[0]), float(expires_at_s)

    def verify(self, token: str, digest: bytes = b"") -> Claims:
        """Return what a token says.

        Args:
            digest: `digest_of(token)`, where the caller has it; b"" = it is computed.

        Raises:
            Unauthenticated: It is not one of ours, or has expired.
        """
        digest = digest or digest_of(token)
        claims = self._verified.get(digest)
        if claims is None:
            claims = self._decode(token)
            self._remember(digest, claims)
        elif claims.expires_at_s <= self._clock.now_s():
            self._forget(digest)
            raise _expired()
        return claims

    def forget_session(self, session_id: str) -> None:
        """Drop the remembered tokens of a session that was ended."""
        for digest in list(self._of_session.get(session_id, ())):
            self._forget(digest)

    def _decode(self, token: str) -> Claims:
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise _not_ours()
        found: dict[str, Any] | None = None
        for secret in self._secrets:
            try:
                found = jwt.decode(
                    token,
                    secret,
                    algorithms=ALGORITHMS,
                    leeway=CLOCK_SKEW_S,
                    options={
                        "require": _REQUIRED,
                        "verify_exp": False,
                        "verify_nbf": False,
                        "verify_iat": False,
                    },
                )
                break
            except (jwt.InvalidTokenError, ValueError):
                continue
        if found is None:
            raise _not_ours()
        return self._read(found)

    def _read(self, found: dict[str, Any]) -> Claims:
        """Check the claims by our own clock; types, too: the secret may have signed other tokens."""
        user_id, session_id, expires_at_s, begins_at_s = (
            found["sub"],
            found["sid"],
            found["exp"],
            found["nbf"],
        )
        is_text = isinstance(user_id, str) and isinstance(session_id, str)
        if not is_text or not _is_number(expires_at_s) or not _is_number(begins_at_s):
            raise _not_ours()
        now_s = self._clock.now_s()
        if expires_at_s <= now_s:
            raise _expired()
        if begins_at_s > now_s + CLOCK_SKEW_S:
            raise Unauthenticated(
                "The access token is not valid yet: the clocks of this machine and of the one that made it "
                "differ.",
                code="token_not_yet_valid",
            )
        return Claims(user_id, session_id, float(expires_at_s))

    def _remember(self, digest: bytes, claims: Claims) -> None:
        if len(self._verified) >= MAX_VERIFIED:
            self._forget(next(iter(self._verified)))
        self._verified[digest] = claims
        self._of_session.setdefault(claims.session_id, set()).add(digest)

    def _forget(self, digest: bytes) -> None:
        claims = self._verified.pop(digest, None)
        if claims is None:
            return
        digests = self._of_session.get(claims.session_id)
        if digests is not None:
            digests.discard(digest)
            if not digests:
                del self._of_session[claims.session_id]


def is_access_token_form(text: str) -> bool:
    """Whether a text can be a JWT: it has two dots."""
    return text.count(".") == 2


# ---- refresh tokens


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A refresh token of ours.

    Attributes:
        text: The whole token.
        session_id: The login that it comes from.
        generation: How often the session was refreshed before it.
        digest: SHA-256 of the text in hex: what is stored.
    """

    text: str
    session_id: str
    generation: int
    digest: str

    def __repr__(self) -> str:
        return f"RefreshToken({self.session_id}, generation={self.generation})"


class RefreshTokens:
    """Makes, reads and derives refresh tokens.

    Args:
        secret: JWT_SECRET.
        previous: JWT_SECRET_PREVIOUS; "" = none.
    """

    def __init__(self, secret: str, *, previous: str = "") -> None:
        self._keys = [_derive_key(one) for one in (secret, previous) if one]

    def first(self, session_id: str) -> RefreshToken:
        """Make the first token of a session, from random bytes."""
        return self._make(self._keys[0], session_id, 0, secrets.token_bytes(_KEY_BYTES))

    def successors(self, token: RefreshToken) -> list[RefreshToken]:
        """Return what replaces a token: the same each time. The second is by the previous secret, if any."""
        session, generation = uuid.UUID(token.session_id).bytes, token.generation + 1
        text = token.text.encode() + session + generation.to_bytes(_GENERATION_BYTES)
        return [
            self._make(key, token.session_id, generation, _mac(key, b"successor" + text))
            for key in self._keys
        ]

    def read(self, text: object) -> RefreshToken | None:
        """Read a token; None = it is not one that we made."""
        if not isinstance(text, str) or not text.startswith(REFRESH_START) or len(text) > 200:
            return None
        try:
            data = base64.b64decode(text[len(REFRESH_START) :] + "==", b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        if len(data) != _REFRESH_BYTES or _encode(data) != text:
            return None
        body, proof = data[:-_PROOF_BYTES], data[-_PROOF_BYTES:]
        if not any(hmac.compare_digest(_proof(key, body), proof) for key in self._keys):
            return None
        session_id = str(uuid.UUID(bytes=body[:_SESSION_BYTES]))
        generation = int.from_bytes(body[_SESSION_BYTES : _SESSION_BYTES + _GENERATION_BYTES])
        return RefreshToken(text, session_id, generation, digest_of(text).hex())

    def _make(self, key: bytes, session_id: str, generation: int, material: bytes) -> RefreshToken:
        body = uuid.UUID(session_id).bytes + generation.to_bytes(_GENERATION_BYTES) + material
        text = _encode(body + _proof(key, body))
        return RefreshToken(text, session_id, generation, digest_of(text).hex())


def _derive_key(secret: str) -> bytes:
    """Return a key of its own for refresh tokens, so that no access token can be read as one."""
    return _mac(secret.encode(), b"appliance refresh tokens")


def _proof(key: bytes, body: bytes) -> bytes:
    return _mac(key, b"proof" + body)[:_PROOF_BYTES]


def _mac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, hashlib.sha256)


def _encode(data: bytes) -> str:
    return REFRESH_START + base64.urlsafe_b64encode(data).decode().rstrip("=")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _not_ours() -> Unauthenticated:
    return Unauthenticated(
        "The access token is not one of this appliance. Log in again.", code="invalid_token"
    )


def _expired() -> Unauthenticated:
    return Unauthenticated(
        "The access token has expired. Use the refresh token, or log in again.", code="token_expired"
    )
