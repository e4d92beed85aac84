"""Transactions, on SQLite and PostgreSQL: all or nothing, retried, bounded."""

import asyncio

import pytest
from sqlalchemy import insert, select

from appliance.storage.database import (
    ConstraintViolated,
    Database,
    StoreUnavailable,
    Transaction,
    TransactionConflict,
)
from appliance.storage.schema import metadata, users, wallets


async def add_user(transaction: Transaction, number: int, **more: object) -> None:
    values = {
        "id": f"u{number}",
        "email": f"u{number}@example.com",
        "password_hash": "",
        "created_at": 2**40,
        "updated_at": 2**40,
    }
    await transaction.execute(insert(users), values | more)


async def count(database: Database, table: str = "users") -> int:
    async with database.transaction(is_read_only=True) as transaction:
        return int((await transaction.execute(f"SELECT count(*) FROM {table}"))[0][0])


async def test_rows_have_columns_as_attributes(database: Database) -> None:
    async with database.transaction() as transaction:
        await add_user(transaction, 1, is_admin=True)
        rows = await transaction.execute(
            "SELECT id, email, created_at FROM users WHERE email = :email", {"email": "u1@example.com"}
        )
        (user,) = await transaction.execute(select(users))
    assert [(row.id, row.created_at) for row in rows] == [("u1", 2**40)]
    assert (user.is_admin, user.is_active, user.limits, user.plan) == (True, True, "{}", "")
    assert database.is_up


async def test_the_number_of_changed_rows_is_told(database: Database) -> None:
    async with database.transaction() as transaction:
        for number in range(3):
            await add_user(transaction, number)
        none = await transaction.execute("UPDATE users SET name = 'x' WHERE id = 'other'")
        two = await transaction.execute("UPDATE users SET name = 'x' WHERE id <> 'u0'")
        given = await transaction.execute("UPDATE users SET name = 'y' WHERE id = 'u1' RETURNING id")
    assert (none.changed, two.changed, given.changed, given[0].id) == (0, 2, 1, "u1")


async def test_several_rows_in_one_call(database: Database) -> None:
    rows = [{"at": number, "kind": "user", "id": "x"} for number in range(50)]
    async with database.transaction() as transaction:
        await transaction.execute("INSERT INTO changes(at, kind, id) VALUES (:at, :kind, :id)", rows)
        found = await transaction.execute("SELECT seq, at FROM changes ORDER BY seq")
    assert [row.at for row in found] == list(range(50))
    assert len({row.seq for row in found}) == 50


async def test_an_exception_undoes_the_transaction(database: Database) -> None:
    async def fail() -> None:
        async with database.transaction() as transaction:
            await add_user(transaction, 1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert await count(database) == 0
    assert database.is_up


async def test_a_caller_who_leaves_undoes_the_transaction(database: Database) -> None:
    is_in = asyncio.Event()

    async def stay() -> None:
        async with database.transaction() as transaction:
            await add_user(transaction, 1)
            is_in.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(stay())
    await is_in.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await count(database) == 0
    async with database.transaction() as transaction:
        await add_user(transaction, 1)
    assert await count(database) == 1


async def test_a_second_row_with_the_same_key_is_a_duplicate(database: Database) -> None:
    async with database.transaction() as transaction:
        await add_user(transaction, 1)
    with pytest.raises(ConstraintViolated) as caught:
        async with database.transaction() as transaction:
            await add_user(transaction, 2, email="u1@example.com")
    assert caught.value.is_duplicate
    assert "u1@example.com" not in str(caught.value)


async def test_money_beyond_the_credit_is_refused(database: Database) -> None:
    async with database.transaction() as transaction:
        await transaction.execute(insert(wallets), {"id": "w", "plan_musd": 100})
    for change in (
        "used_musd = 101",
        "leased_musd = 101",
        "used_musd = -1",
        "owed_musd = -1",
        "state = 'odd'",
    ):
        with pytest.raises(ConstraintViolated) as caught:
            async with database.transaction() as transaction:
                await transaction.execute(f"UPDATE wallets SET {change}")
        assert not caught.value.is_duplicate
        assert caught.value.name.startswith("ck_wallets_")


async def test_a_key_of_another_table_must_exist(database: Database) -> None:
    with pytest.raises(ConstraintViolated):
        async with database.transaction() as transaction:
            await transaction.execute(insert(wallets), {"id": "w", "user_id": "nobody"})


async def test_a_conflict_is_run_again(database: Database) -> None:
    runs = []

    async def change(transaction: Transaction) -> str:
        await add_user(transaction, 1)
        runs.append(1)
        if len(runs) < 3:
            raise TransactionConflict("a test")
        return "done"

    assert await database.run(change) == "done"
    assert len(runs) == 3
    assert await count(database) == 1


async def test_conflicts_without_end_are_told(database: Database) -> None:
    async def change(transaction: Transaction) -> None:
        raise TransactionConflict("a test")

    with pytest.raises(StoreUnavailable, match="a test"):
        await database.run(change)


async def test_all_of_many_at_once_are_kept(database: Database) -> None:
    async def add(number: int) -> None:
        async with database.transaction() as transaction:
            await add_user(transaction, number)

    await asyncio.gather(*(add(number) for number in range(100)))
    assert await count(database) == 100


async def test_a_failed_one_of_many_leaves_the_others(database: Database) -> None:
    async def add(number: int) -> None:
        async with database.transaction() as transaction:
            await add_user(transaction, number // 2)

    results = await asyncio.gather(*(add(number) for number in range(60)), return_exceptions=True)
    assert sum(isinstance(result, ConstraintViolated) for result in results) == 30
    assert await count(database) == 30


async def test_statements_of_our_own_fault_stay_as_they_are(database: Database) -> None:
    with pytest.raises(Exception, match=r"(?i)no_such_table") as caught:
        async with database.transaction() as transaction:
            await transaction.execute("SELECT * FROM no_such_table")
    assert not isinstance(caught.value, StoreUnavailable)
    assert database.is_up
    assert await count(database) == 0


async def test_what_is_to_read_only_cannot_write(database: Database) -> None:
    with pytest.raises(Exception, match=r"read-?only"):
        async with database.transaction(is_read_only=True) as transaction:
            await add_user(transaction, 1)
    assert database.is_up
    async with database.transaction() as transaction:
        await add_user(transaction, 1)
    assert await count(database) == 1


async def test_after_its_end_it_is_refused(database: Database) -> None:
    await database.close()
    with pytest.raises(StoreUnavailable) as caught:
        async with database.transaction():
            pass
    assert caught.value.code == "store_unavailable"
    assert caught.value.retry_after_s


async def test_every_table_takes_a_row_as_it_says(database: Database) -> None:
    """Names and defaults are valid on both; a Core select reads all columns."""
    async with database.transaction(is_read_only=True) as transaction:
        for table in metadata.sorted_tables:
            assert await transaction.execute(select(table)) == []


async def test_a_reader_whose_caller_leaves_at_any_step_goes_on(sqlite_database: Database) -> None:
    async def read() -> None:
        async with sqlite_database.transaction(is_read_only=True) as transaction:
            await transaction.execute("SELECT 1")

    for steps in range(40):
        for pause_s in (0.0, 0.0002):
            reading = asyncio.create_task(read())
            for _ in range(steps % 20):
                await asyncio.sleep(pause_s)
            reading.cancel()
            await asyncio.wait({reading})
            await asyncio.gather(*(read() for _ in range(4)))  # by every reader
