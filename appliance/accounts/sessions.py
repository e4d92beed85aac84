"""Sessions: a login, its access tokens, and its refresh tokens, each of which is used once.

Where sessions are kept is `session_stores`' matter, what happens to a refresh token `refresh_rules`'.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from appliance.accounts.actor import UserFacts
from appliance.accounts.callers import user_inactive
from appliance.accounts.refresh_rules import RefreshVerdict, SessionRow, judge_refresh
from appliance.accounts.session_stores import SessionStore, SessionsUnavailable
from appliance.accounts.tokens import AccessTokens, RefreshToken, RefreshTokens
from appliance.base.clock import Clock, format_rfc3339, format_rfc3339_ms
from appliance.base.errors import NotFound, Unauthenticated
from appliance.base.ids import is_id, new_id
from appliance.base.logs import get_logger

log = get_logger("accounts")
MAX_ADDRESS_CHARACTERS: Final = 45
MAX_AGENT_CHARACTERS: Final = 256
KEEP_ENDED_S: Final = 30 * 86_400
FindUser = Callable[[str], Awaitable[UserFacts | None]]
Ended = Callable[[list[str]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class IssuedTokens:
    """What a login or a refresh gives.

    Attributes:
        expires_at_s: Of the access token, seconds since 1970.
    """

    access_token: str
    refresh_token: str
    expires_at_s: float
    session_id: str

    def to_json(self) -> dict[str, Any]:
        """Return `{access_token, refresh_token, expires_at}`."""
        return {
            "access_token": self.access_token,
            "refresh_token": self.refresh_token,
            "expires_at": format_rfc3339(self.expires_at_s, fraction_digits=3),
        }

    def __repr__(self) -> str:
        return f"IssuedTokens(session_id={self.session_id!r})"


class Sessions:
    """Opens, refreshes, lists and ends sessions.

    Args:
        find_user: Returns what is known of a user, from memory or the database; None = there is no such user.
        ended: Called with the ids of sessions that were ended here: this replica refuses their access tokens
            at once and wakes the others.
        lifetime_s: REFRESH_EXPIRATION: how long a session lasts without a refresh, in seconds.
        grace_s: REFRESH_GRACE_S, in seconds.
    """

    def __init__(
        self,
        store: SessionStore,
        access: AccessTokens,
        refresh: RefreshTokens,
        *,
        clock: Clock,
        find_user: FindUser,
        ended: Ended,
        lifetime_s: float,
        grace_s: float,
    ) -> None:
        self._store = store
        self._access = access
        self._refresh = refresh
        self._clock = clock
        self._find_user = find_user
        self._ended = ended
        self._lifetime_s = lifetime_s
        self._grace_s = grace_s

    async def open(self, user: UserFacts, *, ip_address: str, user_agent: str) -> IssuedTokens:
        """Begin a session of a user who has just proven who it is.

        Raises:
            SessionsUnavailable: It cannot be kept.
        """
        token = self._refresh.first(new_id(self._clock))
        now_ms = self._now_ms()
        row = SessionRow(
            id=token.session_id,
            user_id=user.id,
            token_hash=token.digest,
            expires_at_ms=self._end_ms(now_ms),
            created_at_ms=now_ms,
            ip_address=printable(ip_address, MAX_ADDRESS_CHARACTERS),
            user_agent=printable(user_agent, MAX_AGENT_CHARACTERS),
        )
        await self._store.create(row)
        return self._issue(user, token)

    async def refresh(self, text: object) -> tuple[UserFacts, IssuedTokens]:
        """Replace a refresh token, and give an access token.

        1. it is none of ours                          → 401
        2. the session has ended                       → 401
        3. the newest token                            → its successor; if others were quicker, see again
        4. the one before it, within the grace         → the same successor
        5. any older one                               → the session ends, 401

        What may be out of date is read again from where it is right before anything is refused.

        Args:
            text: As the caller sent it.

        Raises:
            Unauthenticated: Cases 1, 2, 5; or the user is not active.
            SessionsUnavailable: Sessions cannot be read or written.
        """
        token = self._refresh.read(text)
        if token is None:  # 1
            raise _invalid_refresh_token()
        row = await self._store.read(token.session_id)
        for _ in range(4):
            now_ms = self._now_ms()
            verdict = judge_refresh(row, token, now_ms=now_ms, grace_s=self._grace_s)
            if verdict is RefreshVerdict.ROTATE and row is not None:  # 3
                user = await self._active_user(row)
                new = self._refresh.successors(token)[0]
                done = await self._store.rotate(
                    row, new_hash=new.digest, now_ms=now_ms, expires_at_ms=self._end_ms(now_ms)
                )
                if done:
                    return user, self._issue(user, new)
                row = await self._store.read_truth(token.session_id)
                continue
            truth = await self._read_truth(row, token, verdict)
            if truth == row:
                break
            row = truth
        return await self._finish(row, token, verdict)

    async def _read_truth(
        self, row: SessionRow | None, token: RefreshToken, verdict: RefreshVerdict
    ) -> SessionRow | None:
        """Read a session where it is right; a repeated refresh can do without."""
        try:
            return await self._store.read_truth(token.session_id)
        except SessionsUnavailable:
            if verdict is RefreshVerdict.REPEAT:
                return row
            raise

    async def _finish(
        self, row: SessionRow | None, token: RefreshToken, verdict: RefreshVerdict
    ) -> tuple[UserFacts, IssuedTokens]:
        if verdict is RefreshVerdict.ROTATE:  # others were quicker again and again
            raise SessionsUnavailable
        if verdict is RefreshVerdict.REPEAT and row is not None:  # 4
            for successor in self._refresh.successors(token):
                if successor.digest == row.token_hash:
                    user = await self._active_user(row)
                    return user, self._issue(user, successor)
        if verdict is RefreshVerdict.REUSED and row is not None:  # 5
            await self.end([row], reason="reuse")
            log.warning("session.reuse", session=row.id, user=row.user_id, generation=token.generation)
            raise Unauthenticated(
                "This refresh token was used before, so it may have been copied: the session has ended. "
                "Log in again.",
                code="refresh_reused",
            )
        raise Unauthenticated("The session has ended. Log in again.", code="session_ended")  # 2

    async def _active_user(self, row: SessionRow) -> UserFacts:
        user = await self._find_user(row.user_id)
        if user is None or not user.is_active:
            raise user_inactive()
        return user

    # ---- lists and ends

    async def find_by_refresh_token(self, text: object) -> SessionRow:
        """Return the session that a refresh token comes from, of any generation; it may have ended.

        Args:
            text: As the caller sent it.

        Raises:
            Unauthenticated: It is none of ours, or its session is not known any more.
            SessionsUnavailable: Sessions cannot be read.
        """
        token = self._refresh.read(text)
        if token is None:
            raise _invalid_refresh_token()
        row = await self._store.read_truth(token.session_id)
        if row is None:
            raise Unauthenticated("The session has ended. Log in again.", code="session_ended")
        return row

    async def is_live(self, user_id: str, session_id: str) -> bool:
        """Whether a user has this session, and it has not ended.

        Raises:
            SessionsUnavailable: Sessions cannot be read.
        """
        row = await self._store.read_truth(session_id)
        if row is None or row.user_id != user_id or row.revoked_at_ms is not None:
            return False
        return row.expires_at_ms > self._now_ms()

    async def of_user(self, user_id: str) -> list[SessionRow]:
        """Return the sessions of a user, the newest first."""
        return await self._store.of_user(user_id, self._now_ms())

    async def end_one(self, user_id: str, session_id: str) -> None:
        """End one session of a user; ending it again does nothing.

        Raises:
            NotFound: This user has no such session.
        """
        row = await self._store.read_truth(session_id) if is_id(session_id) else None
        if row is None or row.user_id != user_id:
            raise NotFound(
                f"There is no session {printable(session_id, 64)!r} of this user.", code="session_unknown"
            )
        await self.end([row])

    async def end_all(self, user_id: str, *, but: str = "") -> int:
        """End all sessions of a user; return how many.

        Args:
            but: The id of one that goes on; "" = none.
        """
        ended = 0
        while rows := [row for row in await self.of_user(user_id) if row.id != but]:
            await self.end(rows)
            ended += len(rows)
        return ended

    async def end(self, rows: list[SessionRow], *, reason: str = "ended") -> None:
        """End sessions here and on all replicas; see `SessionStore.end`."""
        await self._store.end(rows, self._now_ms(), reason=reason)
        await self._ended([row.id for row in rows])

    async def prune(self) -> None:
        """Delete sessions that ended a month ago."""
        await self._store.prune(self._now_ms() - KEEP_ENDED_S * 1000)

    # ---- inside

    def _issue(self, user: UserFacts, token: RefreshToken) -> IssuedTokens:
        access, expires_at_s = self._access.issue(user, token.session_id)
        return IssuedTokens(access, token.text, expires_at_s, token.session_id)

    def _now_ms(self) -> int:
        return round(self._clock.now_s() * 1000)

    def _end_ms(self, now_ms: int) -> int:
        return now_ms + round(self._lifetime_s * 1000)


def _invalid_refresh_token() -> Unauthenticated:
    return Unauthenticated(
        "The refresh token is not one of this appliance. Log in again.", code="refresh_invalid"
    )


def session_to_json(row: SessionRow, *, current: str = "") -> dict[str, Any]:
    """Return a session as its user sees it.

    Args:
        current: The id of the session that asks.
    """
    used_at_ms = row.rotated_at_ms or row.created_at_ms
    return {
        "id": row.id,
        "ip_address": row.ip_address,
        "user_agent": row.user_agent,
        "created_at": format_rfc3339_ms(row.created_at_ms),
        "last_used_at": format_rfc3339_ms(used_at_ms),
        "expires_at": format_rfc3339_ms(row.expires_at_ms),
        "is_current": row.id == current,
    }


def printable(text: str, characters: int) -> str:
    """Return a text of others cut to so many characters, without those that cannot be shown or stored."""
    return "".join(one for one in text[:characters] if one.isprintable())
