"""Passwords: argon2id, bcrypt that is replaced, unknown users, bounds."""

import asyncio
from collections.abc import Iterator

import bcrypt
import pytest

from appliance.accounts.passwords import MAX_WAITING, PasswordCheck, Passwords
from appliance.base.errors import Invalid, Unavailable

# Made by Go's golang.org/x/crypto/bcrypt and PHP's password_hash: the same password, three spellings of the version.
RIGHT = "correct horse battery"


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    one = Passwords(min_characters=10)
    yield one
    one.close()


async def test_password_is_known_by_its_hash_alone(passwords: Passwords) -> None:
    stored = await passwords.hash(RIGHT)
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await passwords.check(RIGHT, stored) == PasswordCheck(True)
    assert await passwords.check(RIGHT + "!", stored) == PasswordCheck(False)
    assert await passwords.hash(RIGHT) != stored


@pytest.mark.parametrize("version", ["2a", "2b", "2y"])
async def test_bcrypt_is_read_and_replaced(passwords: Passwords, version: str) -> None:
    stored = bcrypt.hashpw(RIGHT.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", f"${version}$")
    checked = await passwords.check(RIGHT, stored)
    assert checked.is_right
    assert checked.new_hash is not None
    assert await passwords.check(RIGHT, checked.new_hash) == PasswordCheck(True)
    assert await passwords.check("wrong", stored) == PasswordCheck(False)


async def test_bcrypt_sees_72_bytes_and_its_replacement_sees_all(passwords: Passwords) -> None:
    long = "ä" * 40  # 80 bytes
    stored = bcrypt.hashpw(long.encode()[:72], bcrypt.gensalt(4)).decode()
    checked = await passwords.check(long, stored)
    assert checked.is_right
    assert checked.new_hash is not None
    assert await passwords.check(long, checked.new_hash) == PasswordCheck(True)
    assert await passwords.check("ä" * 36, checked.new_hash) == PasswordCheck(False)


@pytest.mark.parametrize(
    "stored",
    [
        None,
        "",
        "$2a$31$" + "x" * 53,
        "$2a$",
        "$2b$04$short",
        "$argon2id$v=19$broken",
        "plain text",
        "$1$md5$x",
        "\0",
    ],
)
async def test_what_is_no_hash_matches_no_password(passwords: Passwords, stored: str | None) -> None:
    assert await passwords.check(RIGHT, stored) == PasswordCheck(False)


@pytest.mark.parametrize("password", ["", "x" * 1025, "\ud800" * 10, "nul\0nul"])
async def test_odd_passwords_are_wrong_not_a_failure(passwords: Passwords, password: str) -> None:
    stored = bcrypt.hashpw(b"another", bcrypt.gensalt(4)).decode()
    assert not (await passwords.check(password, stored)).is_right
    assert not (await passwords.check(password, await passwords.hash(RIGHT))).is_right


@pytest.mark.parametrize(
    ("password", "code"),
    [
        ("short", "password_too_short"),
        ("x" * 1025, "password_too_long"),
        ("\ud800" * 12, "password_too_long"),
        (12345678901, None),
        (None, None),
    ],
)
def test_new_password_that_is_refused(passwords: Passwords, password: object, code: str | None) -> None:
    with pytest.raises(Invalid) as refused:
        passwords.check_form(password)
    assert (refused.value.param, refused.value.code) == ("password", code)


@pytest.mark.parametrize("stored", [None, ""])
async def test_unknown_user_costs_one_hash_as_a_wrong_password_does(
    passwords: Passwords, stored: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    compare = passwords._is_argon2

    def counted(data: bytes, hashed: str) -> bool:
        compared.append(hashed[:30])
        return compare(data, hashed)

    monkeypatch.setattr(passwords, "_is_argon2", counted)
    await passwords.check("wrong", await passwords.hash(RIGHT))
    await passwords.check("wrong", stored)
    assert compared == ["$argon2id$v=19$m=19456,t=2,p=1"] * 2


async def test_too_many_at_once_are_refused(passwords: Passwords) -> None:
    tasks = [asyncio.create_task(passwords.check(RIGHT, None)) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="Too many logins at once"):
        await passwords.check(RIGHT, None)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not (await passwords.check(RIGHT, None)).is_right
