"""What is known of users and keys, in memory: requests are admitted by it, without asking the database.

It holds digests, not keys. Who fills it and keeps it current is `directory`; what a credential is worth is
decided in `callers`.
"""

from dataclasses import dataclass
from itertools import islice
from typing import Final

from appliance.accounts.actor import Actor, KeyFacts, UserFacts
from appliance.base.clock import Clock

UNKNOWN_S: Final = 5.0  # how long an unknown key is remembered as such
MAX_UNKNOWN: Final = 20_000
MAX_SESSIONS: Final = 20_000
INACTIVE: Final = float("-inf")


class KnownKey:
    """A key in memory.

    Attributes:
        actor: Who calls with it.
        valid_until_s: Seconds since 1970; infinite = for ever, minus infinity = its user is not active.
        was_used: Since this was looked at last.
    """

    __slots__ = ("actor", "digest", "valid_until_s", "was_used")

    def __init__(self, digest: bytes, actor: Actor, valid_until_s: float) -> None:
        self.digest = digest
        self.actor = actor
        self.valid_until_s = valid_until_s
        self.was_used = False


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key as it is stored."""

    digest: bytes
    user_id: str
    facts: KeyFacts


class Snapshot:
    """Users, keys and ended sessions.

    Args:
        max_keys: KEY_SNAPSHOT_MAX; beyond it the ones that were not used lately are dropped.
        max_age_s: SNAPSHOT_MAX_AGE_S, in seconds.

    Attributes:
        keys: By digest.
        users: By id: owners of these keys, and users with a session.
        ended: Sessions that were ended: id → until when access tokens of theirs could be valid.
        static_user: Whom keys of the settings are billed to; None = no user.
        as_of_s: When the database confirmed it last, seconds since 1970; minus infinity = never.
        version: Grows with every change.
    """

    def __init__(self, *, clock: Clock, max_keys: int = 200_000, max_age_s: float = 3600) -> None:
        self._clock = clock
        self._max_keys = max_keys
        self._max_age_s = max_age_s
        self.keys: dict[bytes, KnownKey] = {}
        self.users: dict[str, UserFacts] = {}
        self.ended: dict[str, float] = {}
        self.static_user: UserFacts | None = None
        self.as_of_s = INACTIVE
        self.valid_until_s = INACTIVE
        self.version = 0
        self._sessions: dict[str, Actor] = {}
        self._digest_of: dict[str, bytes] = {}
        self._digests_of_user: dict[str, set[bytes]] = {}
        self._unknown: dict[bytes, float] = {}

    # ---- age

    def confirm(self, at_s: float) -> None:
        """Note that everything is as the database had it at `at_s`, in seconds since 1970."""
        self.as_of_s = at_s
        self.valid_until_s = at_s + self._max_age_s

    # ---- keys and users

    def put_user(self, user: UserFacts) -> None:
        """Note what is known of a user now; keys and sessions of this user follow."""
        if self.users.get(user.id) == user:
            return
        self.users[user.id] = user
        self.version += 1
        for digest in self._digests_of_user.get(user.id, ()):
            known = self.keys[digest]
            if known.actor.key is not None:
                self.keys[digest] = self._known(digest, user, known.actor.key)
        if self.static_user is not None and self.static_user.id == user.id:
            self.static_user = user

    def drop_user(self, user_id: str) -> None:
        """Forget a user, and the keys of this user."""
        self.version += 1
        for digest in list(self._digests_of_user.get(user_id, ())):
            self._drop(digest)
        self.users.pop(user_id, None)
        if self.static_user is not None and self.static_user.id == user_id:
            self.static_user = None

    def put_key(self, row: KeyRow) -> None:
        """Note what is known of a key now; its user must be known."""
        user = self.users[row.user_id]
        old = self._digest_of.get(row.facts.id)
        if old is not None and old != row.digest:
            self._drop(old)
        elif old is None and len(self.keys) >= self._max_keys:
            self._drop_one_unused()
        known = self.keys.get(row.digest)
        if known is not None and known.actor.key == row.facts and known.actor.user is user:
            return
        self.version += 1
        self.keys[row.digest] = self._known(row.digest, user, row.facts)
        self._digest_of[row.facts.id] = row.digest
        self._digests_of_user.setdefault(user.id, set()).add(row.digest)
        self._unknown.pop(row.digest, None)

    def drop_key(self, key_id: str) -> None:
        """Forget a key that is no longer valid."""
        digest = self._digest_of.get(key_id)
        if digest is not None:
            self.version += 1
            self._drop(digest)

    def has_key(self, key_id: str) -> bool:
        """Whether a key is in memory."""
        return key_id in self._digest_of

    def note_unknown(self, digest: bytes) -> None:
        """Remember for some seconds that the database does not know a key."""
        if len(self._unknown) >= MAX_UNKNOWN:
            for one in list(islice(self._unknown, MAX_UNKNOWN // 10)):
                del self._unknown[one]
        self._unknown.pop(digest, None)
        self._unknown[digest] = self._clock.now_s() + UNKNOWN_S

    def is_unknown(self, digest: bytes) -> bool:
        """Whether the database was asked for a key within the last seconds, and did not know it."""
        until_s = self._unknown.get(digest)
        return until_s is not None and self._clock.now_s() < until_s

    def forget_unknown(self) -> None:
        """Forget which keys are unknown: there are new ones."""
        self._unknown.clear()

    # ---- sessions

    def session_actor(self, user: UserFacts, session_id: str) -> Actor:
        """Return who calls with an access token of a session."""
        actor = self._sessions.get(session_id)
        if actor is None or actor.user is not user:
            if len(self._sessions) >= MAX_SESSIONS:
                del self._sessions[next(iter(self._sessions))]
            actor = Actor("user", user, None, user.id, f"session:{session_id}", session_id)
            self._sessions[session_id] = actor
        return actor

    def end_session(self, session_id: str, until_s: float) -> None:
        """Note that a session was ended: its access tokens are refused.

        Args:
            until_s: When the last of them expires, seconds since 1970.
        """
        self.version += 1
        self._sessions.pop(session_id, None)
        self.ended[session_id] = until_s

    def forget_ended(self) -> None:
        """Forget ended sessions whose access tokens have expired."""
        now_s = self._clock.now_s()
        for session_id in [one for one, until_s in self.ended.items() if until_s < now_s]:
            del self.ended[session_id]

    # ---- use

    def take_used(self) -> list[str]:
        """Return the ids of the keys that were used since the last call."""
        used = []
        for known in self.keys.values():
            if known.was_used:
                known.was_used = False
                if known.actor.key is not None:
                    used.append(known.actor.key.id)
        return used

    # ---- inside

    def _known(self, digest: bytes, user: UserFacts, key: KeyFacts) -> KnownKey:
        valid_until_s = float("inf") if key.expires_at_s is None else key.expires_at_s
        actor = Actor("user", user, key, user.id, f"key:{key.id}", stay_local=key.stay_local)
        known = KnownKey(digest, actor, valid_until_s if user.is_active else INACTIVE)
        old = self.keys.get(digest)
        known.was_used = old is not None and old.was_used
        return known

    def _drop(self, digest: bytes) -> None:
        known = self.keys.pop(digest)
        key, user = known.actor.key, known.actor.user
        if key is not None:
            self._digest_of.pop(key.id, None)
        if user is not None and (digests := self._digests_of_user.get(user.id)) is not None:
            digests.discard(digest)
            if not digests:
                del self._digests_of_user[user.id]

    def _drop_one_unused(self) -> None:
        """Drop the key that has been in memory for the longest, of those that were not used lately."""
        for _ in range(8):
            digest = next(iter(self.keys))
            known = self.keys[digest]
            if not known.was_used:
                break
            del self.keys[digest]
            self.keys[digest] = known  # behind all others
        self._drop(digest)
