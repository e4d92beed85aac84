"""The meter of one request: holds money before it is sent and while it is answered, charges at its end.

    meter = await metering.begin(order)         # PaymentRequired where the wallet does not allow it
    meter.attempt("served-name", "backend")     # before it is sent; again for each other backend
    meter.took(1, len(piece))                   # for each piece of the response; False = not paid for
    await meter.took_later(1, len(piece))       # after that: waits for more money; False = end it now
    meter.end(Ending.COMPLETE, usage)           # exactly once counts; neither it nor `close` waits
    meter.close()                               # in a `finally`: gives back what is held

Nothing here reads or parses what flows. Tokens are counted as the larger of events and content bytes / 6,
where the content is what is left of the bytes without the first event's size for each event: an engine's
frame.
"""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from appliance.accounts.allowance import Allowance, Allowances
from appliance.accounts.journal import Journal, JournalFull
from appliance.accounts.key_caps import KeyCap, KeyCaps
from appliance.accounts.prices import Price, TokenUsage
from appliance.accounts.settlement import (
    AttemptEnd,
    AttemptIds,
    AttemptNote,
    Bill,
    BillingRules,
    Ending,
    Settlement,
    bounded,
    decide,
)
from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Forbidden, PaymentRequired
from appliance.base.money import TOKENS_PER_PRICE, format_dollars, to_dollars

BYTES_PER_PROMPT_TOKEN = 3
TOKENS_PER_PICTURE = 1000
BYTES_PER_TOKEN = 6
MARGIN_TOKENS = 64
WHOLE_ANSWER_TOKENS = 1024
MAX_FRAME_BYTES = 320
NEVER = 1 << 60


@dataclass(frozen=True, slots=True)
class Payer:
    """Who pays for a request.

    Attributes:
        wallet_id: The wallet.
        user_id: Its owner; "" = none.
        key_id: The API key of the request; "" = it came without.
        client_id: Whose sessions it is counted in (`GET /billing/credits/sessions`).
        ip: The client's address.
        key_cap_musd: The most that the key may spend in a calendar month; None = there is no cap.
    """

    wallet_id: str
    user_id: str = ""
    key_id: str = ""
    client_id: str = ""
    ip: str = ""
    key_cap_musd: int | None = None


class MeterOrder(msgspec.Struct, frozen=True):
    """What is to be metered.

    Attributes:
        payer: Who pays.
        price: Of the model, valid when the request begins.
        model: The public name.
        prompt_tokens: Estimated (`estimate_prompt`).
        max_tokens: The most that the response can have; 0 = the client set no limit.
        is_gradual: The response comes in pieces, each of which is told by `took`; False = all of it is held
            at once.
        kind: `inference`, or `embedding`, which has a price of its own and no tokens in the response.
    """

    payer: Payer
    price: Price
    model: str
    prompt_tokens: int
    max_tokens: int = 0
    is_gradual: bool = True
    kind: str = "inference"


def estimate_prompt(text_bytes: int, pictures: int = 0) -> int:
    """Return about how many tokens a prompt has; engines are not asked.

    Args:
        text_bytes: Of all its texts, UTF-8.
        pictures: In it.
    """
    return -(-text_bytes // BYTES_PER_PROMPT_TOKEN) + TOKENS_PER_PICTURE * pictures


def hold_both(allowance: Allowance, cap: KeyCap | None, musd: int) -> bool:
    """Take `musd` from an allowance, within the cap of a key; False = nothing was taken."""
    if cap is None:
        return allowance.hold(musd)
    if not cap.hold(musd):
        return False
    if not allowance.hold(musd):
        cap.release(musd)
        return False
    return True


class SpendingLimited(PaymentRequired):
    """A limit on spending does not allow a request.

    Args:
        needed_musd: What it needs, micro-dollars.
    """

    default_code = "spending_limit"

    def __init__(self, needed_musd: int) -> None:
        super().__init__("Spending limit exceeded")
        self.needed_musd = needed_musd


class Meter:
    """The meter of one request; see the module. Its methods do not wait, but for `took_later`.

    Attributes:
        is_stopped: The last piece was not paid for.
        is_store_away: More could not be had since the database cannot be asked.
    """

    __slots__ = (
        "_allowance",
        "_cap",
        "_content_bytes",
        "_events",
        "_first_hold_musd",
        "_frame_bytes",
        "_held_musd",
        "_next_bytes",
        "_next_events",
        "_note",
        "_number",
        "_order",
        "_paid_tokens",
        "_parts",
        "_supply",
        "is_stopped",
        "is_store_away",
    )

    def __init__(
        self, parts: "Metering", order: MeterOrder, allowance: Allowance, cap: KeyCap | None, held_musd: int
    ) -> None:
        self._parts = parts
        self._order = order
        self._allowance = allowance
        self._cap = cap
        self._held_musd = self._first_hold_musd = held_musd
        self._paid_tokens = parts.first_tokens(order)
        self._note: AttemptNote | None = None
        self._number = 0
        self._supply: Price | None = None
        self._events = self._content_bytes = self._frame_bytes = 0
        self._next_events = self._next_bytes = 0
        self.is_stopped = self.is_store_away = False

    @property
    def held_musd(self) -> int:
        """What is held for the request now."""
        return self._held_musd

    @property
    def counted_tokens(self) -> int:
        """Tokens of the response, as we count them."""
        if self._order.kind == "embedding":
            return 0
        return max(self._events, self._content_bytes // BYTES_PER_TOKEN)

    def attempt(self, served_model: str, backend: str, *, supply: Price | None = None) -> None:
        """Note that the request is sent to a backend now; one that runs counts as failed.

        Args:
            served_model: The name of the model there.
            backend: The backend's name.
            supply: What a hosted API takes from us; None = the backend does not bill us.

        Raises:
            PaymentRequired: An earlier attempt used up what was held, and the wallet has no more.
            JournalFull: It cannot be noted.
        """
        self.end(Ending.FAILED)
        if self._held_musd < self._first_hold_musd:
            self._hold_again()
        order, payer = self._order, self._order.payer
        at_ms = int(self._parts.clock.now_s() * 1000)
        note = AttemptNote(
            self._parts.ids.new(at_ms),
            at_ms,
            payer.wallet_id,
            payer.user_id,
            payer.key_id,
            payer.client_id,
            payer.ip,
            order.kind,
            order.model,
            served_model,
            backend,
            order.price.version,
            order.prompt_tokens,
        )
        try:
            self._number = self._parts.journal.begin(note, self._held_musd)
        except JournalFull:
            if not order.price.is_free:
                raise
            self._number = 0
        self._note, self._supply = note, supply
        self._events = self._content_bytes = self._frame_bytes = 0
        self._next_events = self._next_bytes = 0

    def _hold_again(self) -> None:
        """Hold for another attempt what the last one used up, or less where less is free."""
        order, price = self._order, self._order.price
        missing = min(self._first_hold_musd - self._held_musd, self._free_musd())
        base = self._cost(0)
        if self._held_musd + missing <= base or not self._hold(missing):
            raise self._parts.refusal(self._allowance, self._first_hold_musd - self._held_musd)
        self._held_musd += missing
        if price.out_per_mtok:
            tokens = (self._held_musd - base) * TOKENS_PER_PRICE // price.out_per_mtok
            self._paid_tokens = min(tokens, self._parts.first_tokens(order))

    def took(self, events: int, n_bytes: int) -> bool:
        """Count a piece of the response.

        Args:
            events: In it.
            n_bytes: Of it.

        Returns:
            False = it is not paid for, and not counted: wait for more by `took_later`.
        """
        self._events = total = self._events + events
        self._content_bytes = content = self._content_bytes + n_bytes - events * self._frame_bytes
        if total < self._next_events and content < self._next_bytes:
            return True
        if self._pay_for_more():
            return True
        self._events -= events
        self._content_bytes -= n_bytes - events * self._frame_bytes
        self._next_events = self._next_bytes = 0
        self.is_stopped = True
        return False

    async def took_later(self, events: int, n_bytes: int) -> bool:
        """Count a piece that `took` has refused, after waiting for more of the wallet.

        Returns:
            False = the wallet has no more, or the database cannot be asked: end the response now.
        """
        self._events += events
        self._content_bytes += n_bytes - events * self._frame_bytes
        missing, is_held = self._cost(self.counted_tokens) - self._held_musd, False
        try:
            is_held = missing <= 0 or await self._hold_later(missing)
        finally:
            if not is_held:
                self._events -= events
                self._content_bytes -= n_bytes - events * self._frame_bytes
        if is_held:
            self.is_stopped = False
            self._held_musd += max(0, missing)
            self._hold_up_to(max(self._paid_tokens, self.counted_tokens))
            self._set_next(MARGIN_TOKENS)
        return is_held

    async def _hold_later(self, musd: int) -> bool:
        """Hold `musd` more, after a wait; False = the wallet or the key's cap does not allow it."""
        if self._cap is not None and not self._cap.hold(musd):
            return False
        is_held = False
        try:
            is_held = await self._allowance.hold_or_wait(musd)
        except ApplianceError:
            self.is_store_away = True
        finally:
            if self._cap is not None and not is_held:
                self._cap.release(musd)
        return is_held

    def took_whole(self, text_bytes: int) -> None:
        """Count a whole response of which the engine told no tokens.

        Args:
            text_bytes: Of its text, without anything around it.
        """
        self._events, self._content_bytes = 1, text_bytes

    def _pay_for_more(self) -> bool:
        """Take further slices before what is paid for is used up; see `took`.

        1. the first piece gives the frame's size     → counted as so many events
        2. enough is paid for, or more can be held    → go on
        3. less can be held                           → as much as there is, and ask for more meanwhile
        4. nothing more, but some is still paid for   → go on, and try again at the next token
        5. otherwise                                  → wait for more
        """
        if not self._frame_bytes and self._events:  # 1
            self._frame_bytes = max(1, min(self._content_bytes // self._events, MAX_FRAME_BYTES))
            self._content_bytes -= self._events * self._frame_bytes
        price, counted = self._order.price, self.counted_tokens
        if not price.out_per_mtok or self._order.kind == "embedding":
            self._next_events = self._next_bytes = NEVER
            if self._number:  # a kill from now on: what has been delivered is paid
                self._parts.journal.progress(self._number, counted, self._held_musd, self._cost(counted))
            return True
        goal = self._goal(counted)
        if goal <= self._paid_tokens or self._hold_up_to(max(goal, self._slice_end())):  # 2
            self._set_next(MARGIN_TOKENS)
            return True
        self._hold_what_is_free()  # 3
        if not self._is_capped():
            self._allowance.ask_for_more()
        self._set_next(NEVER)
        return counted <= self._paid_tokens  # 4, 5

    def _goal(self, counted: int) -> int:
        """Return how many tokens should be paid for by now."""
        most = self._order.max_tokens
        goal = counted + MARGIN_TOKENS
        return max(counted, min(goal, most)) if counted <= most else goal

    def _slice_end(self) -> int:
        """Return where the next slice ends: at the most that was asked for, unless that is passed."""
        end, most = self._paid_tokens + self._parts.slice_tokens, self._order.max_tokens
        return min(end, most) if self._paid_tokens < most else end

    def _set_next(self, margin: int) -> None:
        """Set when `took` looks again: before what is paid for is used up, or at the next token."""
        most = self._order.max_tokens
        if most and self._paid_tokens == most:
            margin = min(margin, 0)
        tokens = max(self._paid_tokens - margin, self.counted_tokens) + 1
        self._next_events = tokens if self._frame_bytes else 1  # the first event gives the frame's size
        self._next_bytes = tokens * BYTES_PER_TOKEN

    def _hold(self, musd: int) -> bool:
        return hold_both(self._allowance, self._cap, musd)

    def _free_musd(self) -> int:
        """Return how much can be held now."""
        free = max(0, self._allowance.free_musd)
        return free if self._cap is None else max(0, min(free, self._cap.left_musd))

    def _is_capped(self) -> bool:
        """Return whether the key's cap does not allow another token: no question to the database helps."""
        return (
            self._cap is not None
            and self._cap.left_musd < self._cost(self._paid_tokens + 1) - self._held_musd
        )

    def _hold_up_to(self, tokens: int) -> bool:
        """Hold what `tokens` of the response cost; False = it is not free."""
        order = self._order
        missing = order.price.cost_musd(TokenUsage(order.prompt_tokens, 0, tokens)) - self._held_musd
        if missing > 0:
            if not self._hold(missing):
                return False
            self._held_musd += missing
        self._paid_tokens = tokens
        if self._number:
            counted = self.counted_tokens
            self._parts.journal.progress(self._number, counted, self._held_musd, self._cost(counted))
        return True

    def _hold_what_is_free(self) -> None:
        """Pay for as many tokens as the allowance has, down to one."""
        order = self._order
        base = order.price.cost_musd(TokenUsage(order.prompt_tokens))
        money = self._held_musd + self._free_musd() - base
        tokens = money * TOKENS_PER_PRICE // order.price.out_per_mtok
        if tokens > self._paid_tokens:
            self._hold_up_to(min(tokens, self._slice_end()))

    def _cost(self, written: int) -> int:
        order = self._order
        tokens = TokenUsage(order.prompt_tokens, 0, written)
        return order.price.cost_musd(tokens, is_embedding=order.kind == "embedding")

    def end(self, ending: Ending, usage: TokenUsage | None = None) -> Settlement | None:
        """End the attempt that runs, and charge it. Only the first call after `attempt` does something.

        Args:
            ending: How it ended.
            usage: The engine's own figures; None = it sent none.

        Returns:
            What will be settled; None = no attempt runs.
        """
        note = self._note
        if note is None:
            return None
        self._note = None
        parts, order = self._parts, self._order
        if usage is not None and ending is Ending.COMPLETE:  # as `decide` does
            engine = bounded(usage)
            bill = Bill("engine", engine, engine)
        else:
            bill = decide(
                ending,
                usage,
                TokenUsage(order.prompt_tokens, 0, self.counted_tokens),
                has_begun=self._events > 0,
                is_hosted=self._supply is not None,
                rules=parts.rules,
            )
        is_embedding = order.kind == "embedding"
        cost = 0 if bill.source == "none" else order.price.cost_musd(bill.tokens, is_embedding=is_embedding)
        supply = self._supply.cost_musd(bill.supply, is_embedding=is_embedding) if self._supply else 0
        if cost > self._held_musd:
            missing = min(cost - self._held_musd, self._free_musd())
            if missing > 0 and self._hold(missing):
                self._held_musd += missing
        charged = cost if cost < self._held_musd else self._held_musd
        end = AttemptEnd(
            bill.source, bill.tokens.read, bill.tokens.cached, bill.tokens.written, charged, cost, supply
        )
        if self._number:
            parts.journal.end(self._number, end, self._held_musd)
        kept = self._held_musd - charged if ending is Ending.FAILED else 0
        self._allowance.charge(self._held_musd - kept, charged)
        if self._cap is not None:
            self._cap.charge(self._held_musd - kept, charged)
        self._held_musd = kept
        settlement = Settlement(self._number, note, end)
        parts.settle(settlement)
        return settlement

    def close(self) -> None:
        """Give back what is held. An attempt that still runs ends as if the client had left."""
        self.end(Ending.CLIENT_LEFT)
        held, self._held_musd = self._held_musd, 0
        if held:
            self._allowance.release(held)
            if self._cap is not None:
                self._cap.release(held)


class Metering:
    """Makes meters; one per process.

    Args:
        allowances: Where holds are taken from.
        journal: Where attempts are noted.
        settle: Called with each attempt that has ended; must not wait.
        clock: The time.
        rules: What the operator decides about responses that did not end well.
        slice_tokens: A response is paid for in pieces of so many tokens (HOLD_SLICE_TOKENS).
        caps: Of API keys; None = no key has one.
    """

    def __init__(
        self,
        allowances: Allowances,
        journal: Journal,
        settle: Callable[[Settlement], None],
        clock: Clock,
        *,
        rules: BillingRules | None = None,
        slice_tokens: int = 256,
        caps: KeyCaps | None = None,
    ) -> None:
        self.allowances = allowances
        self.journal = journal
        self.settle = settle
        self.clock = clock
        self.rules = rules or BillingRules()
        self.slice_tokens = slice_tokens
        self.caps = caps
        self.ids = AttemptIds()

    def first_tokens(self, order: MeterOrder) -> int:
        """Return how many tokens of the response are paid for before it begins."""
        if order.kind == "embedding":
            return 0
        if not order.is_gradual:
            return order.max_tokens or WHOLE_ANSWER_TOKENS
        return min(self.slice_tokens, order.max_tokens or self.slice_tokens)

    def try_begin(self, order: MeterOrder) -> Meter | None:
        """Hold money for a request without waiting; None = too little is free now, `begin` may get more."""
        needed = self._needed_musd(order)
        payer, cap = order.payer, None
        if payer.key_cap_musd is not None and self.caps is not None and needed:
            cap = self.caps.find(payer.key_id, payer.key_cap_musd)
            if cap is None:
                return None
        allowance = self.allowances.of(payer.wallet_id)
        if needed and not hold_both(allowance, cap, needed):
            return None
        return Meter(self, order, allowance, cap, needed)

    async def begin(self, order: MeterOrder) -> Meter:
        """Hold money for a request, asking the database where too little is free.

        Raises:
            PaymentRequired: The wallet, a limit on spending or the key's cap does not allow it.
            ApplianceError: The database cannot be asked (503 `store_unavailable`).
        """
        meter = self.try_begin(order)
        if meter is not None:
            return meter
        needed, payer, cap = self._needed_musd(order), order.payer, None
        if payer.key_cap_musd is not None and self.caps is not None and needed:
            cap = await self.caps.read(payer.key_id, payer.key_cap_musd)
            if not cap.hold(needed):
                raise _cap_refusal(cap, needed)
        allowance = self.allowances.of(payer.wallet_id)
        is_held = False
        try:
            is_held = await allowance.hold_or_wait(needed)
        finally:
            if cap is not None and not is_held:
                cap.release(needed)
        if not is_held:
            raise self.refusal(allowance, needed)
        return Meter(self, order, allowance, cap, needed)

    def _needed_musd(self, order: MeterOrder) -> int:
        tokens = TokenUsage(order.prompt_tokens, 0, self.first_tokens(order))
        return order.price.cost_musd(tokens, is_embedding=order.kind == "embedding")

    def refusal(self, allowance: Allowance, needed_musd: int) -> ApplianceError:
        """Return what a caller is told whose wallet does not allow `needed_musd`."""
        remaining = allowance.free_musd + allowance.headroom_musd
        if allowance.reason in ("wallet_frozen", "wallet_unknown"):
            return Forbidden(
                "The wallet of this account is closed for spending. Ask the operator.", code=allowance.reason
            )
        if allowance.reason == "spending_limit":
            return SpendingLimited(needed_musd)
        return PaymentRequired(
            f"The credits do not suffice: {format_dollars(needed_musd)} dollars are needed to begin, "
            f"{format_dollars(remaining)} are left. Add credits, or ask for fewer tokens.",
            details={
                "error_type": "insufficient_quota",
                "error_fields": {
                    "credits_remaining": to_dollars(remaining),
                    "credits_needed": to_dollars(needed_musd),
                },
            },
        )


def _cap_refusal(cap: KeyCap, needed_musd: int) -> PaymentRequired:
    return PaymentRequired(
        f"This API key may spend {format_dollars(cap.cap_musd)} dollars a month; "
        f"{format_dollars(max(0, cap.left_musd))} are left, and {format_dollars(needed_musd)} are needed. "
        "Raise the cap of the key, or use another one.",
        code="key_cap_exceeded",
        details={"error_type": "insufficient_quota"},
    )
