"""A chain without nodes: its blocks follow from the time, its only transactions are transfers of tokens.

A block's hash follows from its number and from the fork that it is on, so no block is kept: a reorganisation
puts the newest blocks on a new fork.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from appliance.base.errors import Invalid
from appliance.simulate.twin_clock import TwinClock

TRANSFER = (
    "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"  # Transfer(address,address,uint256)
)
FIRST_BLOCK = 1_000_000  # how many there are when the twin starts
MAX_TRANSFERS = 5000
MAX_FORKS = 1000


@dataclass(frozen=True, slots=True)
class Token:
    """A token: its contract, what it says of itself."""

    address: str
    symbol: str
    decimals: int


@dataclass(frozen=True, slots=True)
class Network:
    """A network.

    Attributes:
        finality: How many blocks lie on a final one.
    """

    name: str
    chain_id: int
    block_s: float
    finality: int
    tokens: tuple[Token, ...]


NETWORKS = (
    Network("ethereum", 1, 12.0, 64, (Token("0xa0b86991c6218b36c1d19d4a2e9eb0ce3606eb48", "USDC", 6),)),
    Network(
        "polygon",
        137,
        2.0,
        16,
        (
            Token("0x3c499c542cef5e3811e1192ce70d8cc03d5c3359", "USDC", 6),
            Token("0x2791bca1f2de4661ed88a30c99a7a9449aa84174", "USDC", 6),  # the bridged one: another token
        ),
    ),
)


@dataclass(slots=True)
class TokenTransfer:
    """A transfer; it is mined with its block.

    Attributes:
        value: In the token's smallest unit.
        is_ok: Whether its transaction succeeded; else there is no log.
    """

    hash: str
    token: str
    sender: str
    to: str
    value: int
    block: int
    is_ok: bool = True


class SimulatedChain:
    """One network.

    Args:
        network: Which one.
        clock: The twin's.
    """

    def __init__(self, network: Network, clock: TwinClock) -> None:
        self.network = network
        self._clock = clock
        self._genesis_s = clock.now_s() - FIRST_BLOCK * network.block_s
        self._forks: list[tuple[int, int]] = [(0, 0)]  # (first block, salt), by salt
        self._count = 0
        self.transfers: list[TokenTransfer] = []
        self.dropped: list[TokenTransfer] = []

    @property
    def head(self) -> int:
        """The newest block's number."""
        return int((self._clock.now_s() - self._genesis_s) / self.network.block_s + 1e-6)

    def hash_of(self, block: int) -> str:
        """Return a block's hash."""
        salt = max(salt for first, salt in self._forks if first <= block)
        return "0x" + hashlib.sha256(f"{self.network.name}/{block}/{salt}".encode()).hexdigest()

    def time_of(self, block: int) -> int:
        """Return when a block was made, seconds since 1970."""
        return round(self._genesis_s + block * self.network.block_s)

    def pay(self, token: str, to: str, value: int, *, sender: str, is_ok: bool) -> TokenTransfer:
        """Send a transfer; it is in the next block.

        Raises:
            Invalid: There are too many already.
        """
        if len(self.transfers) >= MAX_TRANSFERS:
            raise Invalid(f"The simulation keeps {MAX_TRANSFERS} transfers; start it anew.")
        self._count += 1
        name = hashlib.sha256(f"{self.network.name} transfer {self._count}".encode()).hexdigest()
        made = TokenTransfer(f"0x{name}", token, sender, to, value, self.head + 1, is_ok)
        self.transfers.append(made)
        return made

    def reorganise(self, blocks: int, *, is_dropping: bool) -> None:
        """Replace the newest blocks; their transfers are mined again in the next block, or are gone."""
        first = max(1, self.head - blocks + 1)
        if len(self._forks) >= MAX_FORKS:
            del self._forks[1]
        self._forks.append((first, self._forks[-1][1] + 1))
        moved = [each for each in self.transfers if first <= each.block <= self.head]
        for transfer in moved:
            self.transfers.remove(transfer)
            if is_dropping:
                self.dropped = [*self.dropped[-MAX_TRANSFERS + 1 :], transfer]
            else:
                transfer.block = self.head + 1
                self.transfers.append(transfer)

    def find(self, name: str, *, head: int) -> TokenTransfer | None:
        """Return a transfer that is mined up to a block, by its transaction."""
        return next((each for each in self.transfers if each.hash == name and each.block <= head), None)

    def logs(self, first: int, last: int) -> list[dict[str, Any]]:
        """Return the logs of blocks, as eth_getLogs has them."""
        found = sorted(
            (each for each in self.transfers if first <= each.block <= last), key=lambda each: each.block
        )
        return [self.log_of(each) for each in found if each.is_ok]

    def log_of(self, transfer: TokenTransfer) -> dict[str, Any]:
        """Return the log of a transfer."""
        index = self.index_of(transfer)
        return {
            "address": transfer.token,
            "topics": [TRANSFER, _padded(transfer.sender), _padded(transfer.to)],
            "data": f"0x{transfer.value:064x}",
            "blockNumber": hex(transfer.block),
            "blockHash": self.hash_of(transfer.block),
            "blockTimestamp": hex(self.time_of(transfer.block)),
            "transactionHash": transfer.hash,
            "transactionIndex": hex(index),
            "logIndex": hex(index),
            "removed": False,
        }

    def index_of(self, transfer: TokenTransfer) -> int:
        """Return its place in its block."""
        same = [each.hash for each in self.transfers if each.block == transfer.block]
        return same.index(transfer.hash)

    def balance(self, token: str, owner: str, *, head: int) -> int:
        """Return how much of a token was paid to an address, less what went from it."""
        mined = [each for each in self.transfers if each.is_ok and each.token == token and each.block <= head]
        return sum(each.value for each in mined if each.to == owner) - sum(
            each.value for each in mined if each.sender == owner
        )


def _padded(address: str) -> str:
    return "0x" + address[2:].rjust(64, "0")
