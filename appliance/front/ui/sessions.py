"""Tokens of the web UI: a browser keeps one instead of the key that was entered.

A token names a key by a part of its digest, and is valid while that key is set, for twelve hours. It is
signed with a secret of this process: after a restart one signs in again.
"""

import base64
import binascii
import hashlib
import hmac
import os
import struct
from typing import Final

from appliance.base.clock import Clock
from appliance.front.pipeline.access import TOKEN_PREFIX

VALID_S: Final = 12 * 3600
MAX_ENDED: Final = 1000
DIGEST_BYTES: Final = 8
_FORM: Final = struct.Struct(">Q8s8s")  # when it ends, of the key's digest, random
_SIGNATURE_BYTES: Final = 16
MAX_TOKEN_CHARS: Final = 80


class UiTokens:
    """Issues and reads tokens.

    Args:
        clock: The time.
        secret: Signs them; None = a random one.
    """

    def __init__(self, *, clock: Clock, secret: bytes | None = None) -> None:
        self._clock = clock
        self._secret = secret or os.urandom(32)
        self._ended: dict[str, None] = {}

    def issue(self, key: str) -> tuple[str, int]:
        """Return a token that stands for a key, and when it ends, in seconds since 1970."""
        ends_s = int(self._clock.now_s()) + VALID_S
        digest = hashlib.sha256(key.encode()).digest()[:DIGEST_BYTES]
        packed = _FORM.pack(ends_s, digest, os.urandom(8))
        signed = packed + self._sign(packed)
        return TOKEN_PREFIX + base64.urlsafe_b64encode(signed).decode().rstrip("="), ends_s

    def digest_of(self, token: str) -> bytes | None:
        """Return the first bytes of the digest of the key that a token stands for; None = it is not valid."""
        if len(token) > MAX_TOKEN_CHARS or not token.isascii() or token in self._ended:
            return None
        text = token.removeprefix(TOKEN_PREFIX)
        try:
            signed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        if len(signed) != _FORM.size + _SIGNATURE_BYTES:
            return None
        packed = signed[: _FORM.size]
        if not hmac.compare_digest(signed[_FORM.size :], self._sign(packed)):
            return None
        ends_s, digest, _ = _FORM.unpack(packed)
        return bytes(digest) if self._clock.now_s() < ends_s else None

    def end(self, token: str) -> None:
        """End a token; the oldest ones that were ended are forgotten where there are too many."""
        if self.digest_of(token) is None:
            return
        self._ended[token] = None
        if len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def _sign(self, packed: bytes) -> bytes:
        return hmac.digest(self._secret, packed, "sha256")[:_SIGNATURE_BYTES]
