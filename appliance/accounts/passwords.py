"""Passwords: argon2id for new ones; bcrypt is read, and replaced when its owner logs in.

Hashing takes tens of milliseconds and 19 MiB, so it runs in two threads at most; a short queue waits for
them, and more is refused.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from appliance.base.errors import Invalid, Unavailable

MAX_PASSWORD_BYTES: Final = 1024
BCRYPT_BYTES: Final = (
    72  # bcrypt uses no more; version 5 of the package refuses longer ones instead of cutting
)
BCRYPT_STARTS: Final = ("$2a$", "$2b$", "$2y$")
MAX_BCRYPT_COST: Final = 16  # 4 s; an imported hash of cost 31 would occupy a thread for a day
THREADS: Final = 2
MAX_WAITING: Final = 50
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class PasswordCheck:
    """The result of comparing a password with what is stored.

    Attributes:
        is_right: Whether it is the password.
        new_hash: What to store instead, where the stored hash is of an older kind; None = keep it.
    """

    is_right: bool
    new_hash: str | None = None


class Passwords:
    """Hashes and compares passwords, in threads.

    Args:
        min_characters: PASSWORD_MIN.
    """

    def __init__(self, *, min_characters: int = 10) -> None:
        self._min_characters = min_characters
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="password")
        self._waiting = 0
        self._dummy = ""

    def check_form(self, password: object) -> str:
        """Check the form of a new password.

        Raises:
            Invalid: It is too short, too long, or no text.
        """
        if not isinstance(password, str):
            raise Invalid("password: it must be a text.", param="password")
        if len(password) < self._min_characters:
            raise Invalid(
                f"password: it has {len(password)} characters; at least {self._min_characters} are needed "
                "(PASSWORD_MIN).",
                param="password",
                code="password_too_short",
            )
        if _to_bytes(password) is None:
            raise Invalid(
                f"password: it is longer than {MAX_PASSWORD_BYTES} bytes, or not UTF-8.",
                param="password",
                code="password_too_long",
            )
        return password

    async def hash(self, password: str) -> str:
        """Return the hash to store.

        Raises:
            Unavailable: Too many passwords are being hashed.
        """
        return await self._run(self._hash_now, password)

    async def check(self, password: str, stored: str | None) -> PasswordCheck:
        """Compare a password with the stored hash.

        Args:
            password: As the caller sent it; of any length.
            stored: The hash; None or "" = there is no such user, which takes as long as a wrong password.

        Raises:
            Unavailable: Too many passwords are being hashed.
        """
        return await self._run(self._check_now, password, stored)

    def close(self) -> None:
        """End the threads; what waits for them is cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, function: Callable[..., ResultT], *args: object) -> ResultT:
        if self._waiting >= MAX_WAITING:
            raise Unavailable(
                "Too many logins at once. Try again in a few seconds.", code="busy", retry_after_s=2
            )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
        finally:
            self._waiting -= 1

    # ---- in a thread

    def _hash_now(self, password: str) -> str:
        return self._hasher.hash(_to_bytes(password) or b"")

    def _check_now(self, password: str, stored: str | None) -> PasswordCheck:
        """Compare.

        1. no such user, or one without a password  → compare with a dummy hash; wrong
        2. too long, or not UTF-8                   → likewise
        3. bcrypt                                   → compare its first 72 bytes; argon2id replaces it
        4. argon2id                                 → compare; where right, other parameters are replaced
        """
        data = _to_bytes(password)
        if not stored or data is None:  # 1, 2
            self._dummy = self._dummy or self._hasher.hash(b"no password has this hash")
            self._is_argon2(b"wrong", self._dummy)
            return PasswordCheck(False)
        if stored.startswith(BCRYPT_STARTS):  # 3
            is_right = _is_bcrypt(data, stored)
            return PasswordCheck(is_right, self._hasher.hash(data) if is_right else None)
        if not self._is_argon2(data, stored):  # 4
            return PasswordCheck(False)
        is_old = self._hasher.check_needs_rehash(stored)
        return PasswordCheck(True, self._hasher.hash(data) if is_old else None)

    def _is_argon2(self, data: bytes, stored: str) -> bool:
        try:
            return self._hasher.verify(stored, data)
        except (Argon2Error, InvalidHashError, ValueError):
            return False


def _to_bytes(password: str) -> bytes | None:
    """Return a password as bytes; None = too long, or no UTF-8 (a lone surrogate)."""
    try:
        data = password.encode()
    except UnicodeEncodeError:
        return None
    return data if len(data) <= MAX_PASSWORD_BYTES else None


def _is_bcrypt(data: bytes, stored: str) -> bool:
    import bcrypt  # loaded with the first such hash: only installations that took over users have some

    cost = stored[4:6]
    if not cost.isdigit() or int(cost) > MAX_BCRYPT_COST:
        return False
    try:
        return bcrypt.checkpw(data[:BCRYPT_BYTES], stored.encode())
    except ValueError:  # not a hash of bcrypt
        return False
