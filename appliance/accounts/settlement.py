"""What an attempt was worth: which tokens are billed, by whose count, and what is noted of it.

One attempt has one settlement, under an id of ours: a client that repeats its request's id pays for each.
"""

import os
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import msgspec

from appliance.accounts.prices import NO_TOKENS, TokenUsage

Source = Literal["engine", "counted", "journal", "none"]
MAX_TOKENS = 1_000_000_000  # of an engine's figures: what is above it is no count


class Ending(Enum):
    """How an attempt ended, as far as money is concerned."""

    COMPLETE = "complete"  # the whole response was received
    CLIENT_LEFT = "client_left"
    STOPPED = "stopped"  # by us: no credits, time limit, drain
    BROKEN = "broken"  # the backend broke off within the response
    FAILED = "failed"  # no response; another backend may be tried
    REFUSED = "refused"  # the backend answered with an error


# By the values of `engines.outcome.Outcome`. CLOSED is the appliance's own drain. An attempt that broke
# before its first event is FAILED, whatever the outcome says (see `decide`).
ENDING_OF_OUTCOME = {
    **dict.fromkeys(("ok", "passed"), Ending.COMPLETE),
    **dict.fromkeys(("cancelled", "client_left"), Ending.CLIENT_LEFT),
    "closed": Ending.STOPPED,
    **dict.fromkeys(("refused", "key_refused", "status_404", "unsupported"), Ending.REFUSED),
    **dict.fromkeys(
        ("full", "adapter_missing", "context", "loading", "status", "engine_error"), Ending.REFUSED
    ),
    **dict.fromkeys(("idle", "broken", "invalid_response", "error_event", "cut_off"), Ending.BROKEN),
    **dict.fromkeys(("pool", "dns", "connect", "tls", "first_byte", "head", "lost", "total"), Ending.FAILED),
    **dict.fromkeys(("empty_stream", "upstream", "unavailable", "timeout"), Ending.FAILED),
}


@dataclass(frozen=True, slots=True)
class BillingRules:
    """What the operator decides.

    Attributes:
        is_unanswered_billed: A client that leaves before the first event pays for its prompt where the
            backend is one that costs us (BILL_UNANSWERED=supply).
        is_broken_billed: What a backend delivered before it broke off is paid for (BILL_BROKEN=counted).
    """

    is_unanswered_billed: bool = True
    is_broken_billed: bool = True


class Bill(msgspec.Struct, frozen=True):
    """Which tokens of an attempt are paid for.

    Attributes:
        source: Who counted them; `none` = nothing is paid.
        tokens: What the client pays for.
        supply: What a backend that costs us will bill us for.
    """

    source: Source
    tokens: TokenUsage
    supply: TokenUsage


def bounded(usage: TokenUsage) -> TokenUsage:
    """Return an engine's figures within what can be: whole, not negative, not more cached than read."""
    if 0 <= usage.cached <= usage.read <= MAX_TOKENS and 0 <= usage.written <= MAX_TOKENS:
        return usage
    read = min(max(0, usage.read), MAX_TOKENS)
    return TokenUsage(read, min(max(0, usage.cached), read), min(max(0, usage.written), MAX_TOKENS))


def decide(
    ending: Ending,
    usage: TokenUsage | None,
    counted: TokenUsage,
    *,
    has_begun: bool,
    is_hosted: bool,
    rules: BillingRules,
) -> Bill:
    """Decide which tokens of an attempt are paid for.

    1. an error, no response              → nothing; we may have to pay what the engine counted
    2. left or stopped before its begin   → nothing; the prompt where the backend is hosted and the rules say
        so
    3. broke off                          → what was delivered, or nothing where the rules say so
    4. the engine has counted             → its figures, zeros included
    5. otherwise                          → the estimated prompt, and what was delivered as we counted it

    Args:
        ending: How it ended.
        usage: The engine's own figures; None = it sent none.
        counted: The estimated prompt, and the tokens that we counted in the response.
        has_begun: A piece of the response was received.
        is_hosted: The backend is a hosted API, which bills us.
        rules: What the operator decides.
    """
    engine = None if usage is None else bounded(usage)
    prompt = TokenUsage(counted.read)
    if ending in (Ending.FAILED, Ending.REFUSED) or (ending is Ending.BROKEN and not has_begun):  # 1
        return Bill("none", NO_TOKENS, engine or NO_TOKENS)
    if ending is not Ending.COMPLETE and not has_begun and engine is None:  # 2
        if is_hosted and rules.is_unanswered_billed:
            return Bill("counted", prompt, prompt)
        return Bill("none", NO_TOKENS, prompt)
    if ending is Ending.BROKEN and not rules.is_broken_billed:  # 3
        return Bill("none", NO_TOKENS, engine or counted)
    if engine is not None:  # 4
        return Bill("engine", engine, engine)
    return Bill("counted", counted, counted)  # 5


class AttemptNote(msgspec.Struct, array_like=True):
    """What is known of an attempt when it begins; in the journal, and later in its usage row.

    Attributes:
        attempt_id: Ours.
        at_ms: When it began, epoch milliseconds.
        wallet_id: Who pays.
        user_id: "" = a key without user.
        key_id: "" = not by an API key.
        client_id: Whose session it is counted in (`credits`).
        ip: The client's address.
        kind: `inference` or `embedding`.
        model: The public name.
        served_model: The name at the backend.
        backend: Its name.
        price_version: Of the price.
        prompt_tokens: Estimated.
    """

    attempt_id: str
    at_ms: int
    wallet_id: str
    user_id: str
    key_id: str
    client_id: str
    ip: str
    kind: str
    model: str
    served_model: str
    backend: str
    price_version: int
    prompt_tokens: int


class AttemptEnd(msgspec.Struct, array_like=True):
    """How an attempt ended, and what it cost.

    Attributes:
        source: Who counted the tokens.
        read: Tokens of the prompt.
        cached: Of these, from the engine's cache.
        written: Tokens of the response.
        charged_musd: What was held and is charged.
        cost_musd: What it costs by the price. The difference is taken from the wallet when it is settled, as
            far as the wallet has it; the remainder is the operator's loss.
        supply_musd: What a hosted API bills us.
    """

    source: str
    read: int = 0
    cached: int = 0
    written: int = 0
    charged_musd: int = 0
    cost_musd: int = 0
    supply_musd: int = 0


class Settlement(msgspec.Struct):
    """One attempt that has ended and is to be settled in the database, once.

    Attributes:
        number: In the journal; 0 = it is not there.
        note: What was known when it began.
        end: How it ended.
    """

    number: int
    note: AttemptNote
    end: AttemptEnd


class AttemptIds:
    """Ids of attempts: UUIDs of version 7, about in the order of making; one source per process."""

    def __init__(self) -> None:
        self._tail = f"{0x8000 | int.from_bytes(os.urandom(2), 'big') & 0x3FFF:04x}-{os.urandom(4).hex()}"
        self._count = 0
        self._at_ms = -1
        self._time = ""  # how an id of `_at_ms` begins

    def new(self, at_ms: int) -> str:
        """Return the next id.

        Args:
            at_ms: The present time, epoch milliseconds.
        """
        self._count = count = (self._count + 1) & 0xFFFFFFF
        if at_ms != self._at_ms:
            time = f"{at_ms:012x}"
            self._at_ms, self._time = at_ms, f"{time[:8]}-{time[8:12]}-7"
        # 12 bits of the counter stand behind the version, 16 more at the end; 46 bits tell processes apart
        return f"{self._time}{count & 0xFFF:03x}-{self._tail}{count >> 12:04x}"
