"""What happens to a refresh token that is presented: decided by the session's row alone.

Of a session only the newest token works, and, for a short time after a refresh, the one before it: a lost
answer or a second tab must not log anybody out. Any older one was copied: the whole session ends.
"""

from dataclasses import dataclass
from enum import Enum

from appliance.accounts.tokens import RefreshToken


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session as it is stored.

    Attributes:
        token_hash: SHA-256 of the newest refresh token, hex.
        previous_hash: Of the one before it; "" = there is none.
        generation: How often the session was refreshed.
        rotated_at_ms: When it was refreshed last, milliseconds since 1970; 0 = never.
        created_at_ms: When its user logged in.
        expires_at_ms: When the session ends.
        revoked_at_ms: When it was ended before; None = it was not.
        ip_address: From where its user logged in.
        user_agent: With which program.
    """

    id: str
    user_id: str
    token_hash: str
    expires_at_ms: int
    created_at_ms: int = 0
    previous_hash: str = ""
    generation: int = 0
    rotated_at_ms: int = 0
    revoked_at_ms: int | None = None
    ip_address: str = ""
    user_agent: str = ""


class RefreshVerdict(Enum):
    """What to do with a refresh token."""

    ROTATE = "rotate"  # it is the newest: replace it
    REPEAT = "repeat"  # it was just replaced: give the same successor again
    GONE = "gone"  # the session has ended
    BEHIND = "behind"  # the store has forgotten a refresh: it says nothing about a theft
    REUSED = "reused"  # an old token: end the session


def judge_refresh(
    row: SessionRow | None, token: RefreshToken, *, now_ms: int, grace_s: float
) -> RefreshVerdict:
    """Decide about a refresh token that was presented.

    1. no session, ended, expired                            → GONE
    2. the newest token                                      → ROTATE
    3. a later one than the store knows                      → BEHIND
    4. the one before the newest, within the grace           → REPEAT
    5. any other                                             → REUSED

    Args:
        row: The session that the token names; None = there is none.
        token: Proven to be made by us.
        now_ms: Milliseconds since 1970.
        grace_s: REFRESH_GRACE_S, in seconds.
    """
    if row is None or row.revoked_at_ms is not None or row.expires_at_ms <= now_ms:  # 1
        return RefreshVerdict.GONE
    if token.digest == row.token_hash:  # 2
        return RefreshVerdict.ROTATE
    if token.generation > row.generation:  # 3
        return RefreshVerdict.BEHIND
    is_in_grace = now_ms - row.rotated_at_ms <= grace_s * 1000
    if token.digest == row.previous_hash and is_in_grace:  # 4
        return RefreshVerdict.REPEAT
    return RefreshVerdict.REUSED  # 5
