"""The snapshot on disk, for a restart while the database is down. It has digests of keys, and no secret.

Its last line is an HMAC by a key derived from JWT_SECRET: a file that was changed, or that another
installation wrote, is not read.
"""

import hashlib
import hmac
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from appliance.accounts.actor import KeyFacts, Limits, UserFacts
from appliance.accounts.snapshot import KeyRow, KnownKey, Snapshot
from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.files import write_atomic
from appliance.base.logs import get_logger

log = get_logger("accounts")

FILE_NAME: Final = "accounts-snapshot"
FORMAT: Final = 1
CLOCK_SKEW_S: Final = 60


@dataclass(frozen=True, slots=True)
class SnapshotContent:
    """What a snapshot holds at one moment; its parts are never changed, so a thread can read them."""

    as_of_s: float
    users: list[UserFacts]
    keys: list[KnownKey]
    ended: dict[str, float]
    static_user: str

    @classmethod
    def of(cls, snapshot: Snapshot) -> "SnapshotContent":
        """Take what a snapshot holds now."""
        return cls(
            snapshot.as_of_s,
            list(snapshot.users.values()),
            list(snapshot.keys.values()),
            dict(snapshot.ended),
            snapshot.static_user.id if snapshot.static_user is not None else "",
        )


class SnapshotFile:
    """Writes and reads the file.

    Args:
        path: The file, in STATE_DIR.
        secret: JWT_SECRET.
        max_age_s: SNAPSHOT_MAX_AGE_S, in seconds.
    """

    def __init__(self, path: Path, secret: str, *, max_age_s: float, clock: Clock) -> None:
        self._path = path
        self._key = hmac.digest(secret.encode(), b"appliance snapshot of accounts", hashlib.sha256)
        self._max_age_s = max_age_s
        self._clock = clock

    def write(self, content: SnapshotContent) -> None:
        """Write the file (blocking; in a thread, since it takes long with many keys).

        Raises:
            OSError: The old file is unchanged.
        """
        write_atomic(self._path, self._pieces(content), mode=0o600, is_synced=False)

    def _pieces(self, content: SnapshotContent) -> Iterator[bytes]:
        """Give the file piece by piece: while one is made, the process can do nothing else.

        The whole text of many keys is never in memory: what it took there would stay taken from the system.
        """
        mac = hmac.new(self._key, digestmod=hashlib.sha256)
        for piece in _render(content):
            mac.update(piece)
            yield piece
        yield b"\n" + mac.hexdigest().encode()

    def load(self, snapshot: Snapshot) -> bool:
        """Fill a snapshot from the file (blocking); False = none may be used, and the log says why."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return False
        except OSError as error:
            log.warning("snapshot_unread", error=repr(error))
            return False
        reason = self._take(content, snapshot)
        if reason:
            log.warning("snapshot_unread", reason=reason)
        return not reason

    def _take(self, content: bytes, snapshot: Snapshot) -> str:
        """Fill a snapshot; return why not, or ""."""
        body, _, mac = content.rpartition(b"\n")
        if not hmac.compare_digest(self._mac(body), mac):
            return "it was changed, or written with another JWT_SECRET"
        found = jsons.loads(body)  # it is ours: the HMAC says so
        if found["format"] != FORMAT:
            return "another version of the appliance wrote it"
        age_s = self._clock.now_s() - found["as_of"]
        if not -CLOCK_SKEW_S <= age_s <= self._max_age_s:
            return f"it is {age_s:.0f} s old; SNAPSHOT_MAX_AGE_S is {self._max_age_s:g}"
        for row in found["users"]:
            snapshot.put_user(_user_in(row))
        for row in found["keys"]:
            snapshot.put_key(_key_in(row))
        for session_id, until_s in found["ended"].items():
            snapshot.end_session(session_id, until_s)
        snapshot.static_user = snapshot.users.get(found["static_user"])
        snapshot.confirm(min(found["as_of"], self._clock.now_s()))
        return ""

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, hashlib.sha256).hex().encode()


def _render(content: SnapshotContent) -> Iterator[bytes]:
    """Give the JSON of the file piece by piece."""
    head = {
        "format": FORMAT,
        "as_of": content.as_of_s,
        "ended": content.ended,
        "static_user": content.static_user,
    }
    yield jsons.dumps(head)[:-1] + b',"users":['
    yield from _render_rows(_user_out(user) for user in content.users)
    yield b'],"keys":['
    yield from _render_rows(
        _key_out(known.digest, known.actor.user.id, known.actor.key)
        for known in content.keys
        if known.actor.user is not None and known.actor.key is not None
    )
    yield b"]}"


def _render_rows(rows: Iterable[list[Any]]) -> Iterator[bytes]:
    comma = b""
    for row in rows:
        yield comma + jsons.dumps(row)
        comma = b","


def _limits_out(limits: Limits) -> list[int | None]:
    return [
        limits.rpm,
        limits.rpd,
        limits.tpm,
        limits.tpd,
        limits.concurrency,
        limits.monthly_cap_musd,
    ]


def _user_out(user: UserFacts) -> list[Any]:
    return [
        user.id,
        user.email,
        user.is_admin,
        user.is_active,
        user.wallet_id,
        user.plan,
        _limits_out(user.limits),
    ]


def _user_in(row: list[Any]) -> UserFacts:
    user_id, email, is_admin, is_active, wallet_id, plan, limits = row
    return UserFacts(user_id, email, is_admin, is_active, wallet_id, plan, Limits(*limits))


def _key_out(digest: bytes, user_id: str, key: KeyFacts) -> list[Any]:
    limits = _limits_out(key.limits)
    scopes = sorted(key.scopes)
    return [
        digest.hex(),
        user_id,
        key.id,
        key.prefix,
        scopes,
        key.models,
        limits,
        key.stay_local,
        key.expires_at_s,
    ]


def _key_in(row: list[Any]) -> KeyRow:
    digest, user_id, key_id, prefix, scopes, models, limits, stay_local, expires_at_s = row
    facts = KeyFacts(
        key_id, prefix, frozenset(scopes), tuple(models), Limits(*limits), stay_local, expires_at_s
    )
    return KeyRow(bytes.fromhex(digest), user_id, facts)
