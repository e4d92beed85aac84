"""What a process does about money when it starts: settles what its journal has, and ends its old leases."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from appliance.accounts.allowance import Allowances
from appliance.accounts.journal import Journal
from appliance.accounts.settlement import AttemptIds, Settlement
from appliance.accounts.settler import BATCH, Settler
from appliance.accounts.usage import UsageStore
from appliance.accounts.wallets import Wallets
from appliance.base.clock import Clock
from appliance.base.errors import Unavailable
from appliance.base.files import write_atomic
from appliance.base.logs import get_logger

log = get_logger("accounts")
NAME = "replica-id"


def read_replica_id(journal_folder: Path, clock: Clock) -> str:
    """Return the id of this replica: it belongs to the journal, whose leases it names (blocking).

    Args:
        journal_folder: The folder of the journal; a new one gets a new id.
        clock: The time.

    Raises:
        OSError: It cannot be read or written.
    """
    path = journal_folder / NAME
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        text = ""
    if len(text) == 36 and text.isascii():
        return text
    text = AttemptIds().new(int(clock.now_s() * 1000))
    write_atomic(path, text.encode())
    return text


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was done at the start.

    Attributes:
        attempts: Settled now, or waiting to be.
        returned_musd: Given back of old leases.
        is_offline: The database could not be used: leases of the journal are spent on meanwhile.
    """

    attempts: int
    returned_musd: int
    is_offline: bool


async def recover(
    journal: Journal,
    store: UsageStore,
    wallets: Wallets,
    allowances: Allowances,
    settler: Settler,
    clock: Clock,
) -> Recovered:
    """Settle what the journal still has, and end the leases of the time before; before the first request.

    Where the database cannot be used, both are taken over from the journal instead: what was leased before
    and is not spent may be spent, for as long as the database may be away.
    """
    settlements = [one.settlement() for _, one in sorted(journal.state.attempts.items())]
    done = 0
    try:
        for start in range(0, len(settlements), BATCH):
            batch = settlements[start : start + BATCH]
            await store.settle(batch)
            journal.settled([one.number for one in batch])
            done += len(batch)
        returned = await wallets.give_all_leases_back()
    except Unavailable:
        _take_over(journal, settlements[done:], allowances, settler, clock)
        return Recovered(len(settlements), 0, is_offline=True)
    for wallet_id in list(journal.state.leases):
        journal.lease(wallet_id, 0)
    if settlements or returned:
        log.info("money_recovered", attempts=len(settlements), returned_musd=returned)
    return Recovered(len(settlements), returned, is_offline=False)


def _take_over(
    journal: Journal, settlements: list[Settlement], allowances: Allowances, settler: Settler, clock: Clock
) -> None:
    spent: dict[str, int] = defaultdict(int)
    for one in settlements:
        spent[one.note.wallet_id] += one.end.charged_musd
        settler.add(one)
    age_s = clock.now_s() - journal.state.reached_ms / 1000
    allowances.restore(journal.state.leases, dict(spent), max(0.0, age_s))
    log.warning("money_taken_over", attempts=len(settlements), wallets=len(journal.state.leases))
