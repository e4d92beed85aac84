"""What a user's requests to the engines cost: rate limits, a hold before, a charge for each attempt after.

Here the engines' `Billing` and the accounts' `Meter` meet; neither knows the other.
"""

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from appliance.accounts.actor import Actor, check_model
from appliance.accounts.guardrails import LatestSpending
from appliance.accounts.limits import RateAdmission, RateLimited, RateLimits
from appliance.accounts.meter import (
    WHOLE_ANSWER_TOKENS,
    Meter,
    Metering,
    MeterOrder,
    Payer,
    SpendingLimited,
    estimate_prompt,
)
from appliance.accounts.prices import FREE, Price, PriceBook, TokenUsage
from appliance.accounts.quotas import RequestQuotas
from appliance.accounts.settlement import ENDING_OF_OUTCOME, Ending, Settlement
from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import PaymentRequired
from appliance.base.inline import in_task
from appliance.base.jsons import read_typed
from appliance.base.logs import get_logger
from appliance.base.money import to_dollars
from appliance.engines.billing import TokenCounts
from appliance.engines.outcome import Outcome
from appliance.engines.receipts import Receipt
from appliance.engines.types import EngineRequest, Operation
from appliance.engines.upstream.exchange import count_choices
from appliance.front.pipeline.response import render_fields

log = get_logger("spending")
MAX_UNREAD_BYTES = 8192  # of a body that is estimated by its size alone, whatever is in it
MAX_TOKENS_NAMES = ("max_completion_tokens", "max_tokens")
STOP_REASON = "credits_exhausted"
STORE_AWAY = "store_unavailable"


class _LimitsOfTokens(msgspec.Struct):
    """The fields of a chat that limit its response; None = absent."""

    max_completion_tokens: int | None = None
    max_tokens: int | None = None


_LIMIT = b',"max_tokens":%d}' % WHOLE_ANSWER_TOKENS
_decode_limits = msgspec.json.Decoder(_LimitsOfTokens).decode


class Spending:
    """Bills requests to the users that send them; one per process.

    Args:
        metering: Makes the meters.
        prices: Returns the price book that is valid now.
        limits: The rate limits of users and keys.
        quotas: The requests that a user has in a month; None = there are no quotas.
        clock: The time.
        latest: What wallets have spent, where there are limits on it; None = there are none.

    Attributes:
        stopped: How many responses were ended before their end, by reason.
    """

    def __init__(
        self,
        metering: Metering,
        prices: Callable[[], PriceBook],
        limits: RateLimits,
        *,
        clock: Clock,
        quotas: RequestQuotas | None = None,
        latest: LatestSpending | None = None,
    ) -> None:
        self.metering = metering
        self.prices = prices
        self.limits = limits
        self.quotas = quotas
        self.latest = latest
        self.clock = clock
        self.stopped: dict[str, int] = {}
        self._supplies: dict[str, Price] = {}

    def billing_of(self, actor: Actor, *, peer: str) -> "CallerBilling | None":
        """Return who pays for a caller's requests; None = no account does.

        Args:
            actor: Who calls.
            peer: The caller's address.
        """
        return CallerBilling(self, actor, peer) if actor.user is not None else None

    def supply_of(self, backend: str) -> Price:
        """Return what a backend that bills us takes: it is not known, so nothing."""
        price = self._supplies.get(backend)
        if price is None:
            price = self._supplies[backend] = Price(backend)
        return price


class CallerBilling:
    """Who pays for the requests of one caller (see `engines.types.Billing`)."""

    __slots__ = ("_actor", "_has_models", "_payer", "_spending")

    def __init__(self, spending: Spending, actor: Actor, peer: str) -> None:
        user, key = actor.user, actor.key
        assert user is not None
        self._spending = spending
        self._actor = actor
        self._has_models = key is not None and bool(key.models)
        self._payer = Payer(
            user.wallet_id,
            user.id,
            key.id if key is not None else "",
            key.id if key else user.id,
            peer,
            key.limits.monthly_cap_musd if key is not None else None,
        )

    def begin(self, request: EngineRequest) -> Coroutine[Any, Any, "RequestSpending"]:
        """Admit a request, and hold what it needs.

        1. the key does not allow the model      → 403
        2. a rate limit or quota is reached      → 429
        3. the model has no price                → 402
        4. the wallet does not have enough       → 402

        Raises:
            Forbidden, RateLimited, PaymentRequired: As above.
            Unavailable: The database cannot be asked, and what was set aside is used up.
        """
        if self._has_models:
            check_model(self._actor, request.public_model)  # 1
        order, is_limited = self._order(request), True
        if not order.is_gradual and order.price.out_per_mtok and order.kind != "embedding":
            is_limited = bool(order.max_tokens)
            order = msgspec.structs.replace(order, max_tokens=limit_whole(request, order.max_tokens))
        return self._begin(order, request.receipt, is_limited=is_limited)

    async def begin_flat(
        self, model: str, receipt: Receipt, *, is_counted_elsewhere: bool = False
    ) -> "RequestSpending":
        """Hold the price of one request whose tokens are not counted (see Billing)."""
        check_model(self._actor, model)
        at_ms = int(self._spending.clock.now_s() * 1000)
        price = self._spending.prices().price_of(model, at_ms)
        if not price.per_request_musd and not price.is_free:
            raise PaymentRequired(
                f"Model {model[:200]!r} has no price per request, which this address needs, since its tokens "
                "are not counted. Ask the operator for one.",
                param="model",
                code="price_unknown",
            )
        if is_counted_elsewhere and price.has_token_prices:
            raise PaymentRequired(
                f"Model {model[:200]!r} is paid by the token, and tokens are not counted at this address. "
                "Use /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages or /v1/embeddings.",
                param="model",
                code="price_unknown",
            )
        order = MeterOrder(self._payer, price, model, 0, is_gradual=False, kind="embedding")
        return await self._begin(order, receipt)

    async def begin_item(self, item: str, receipt: Receipt) -> "RequestSpending":
        """Hold the price of one request for what is no model (see Billing)."""
        price = self._spending.prices().find_own(item, int(self._spending.clock.now_s() * 1000)) or FREE
        order = MeterOrder(self._payer, price, item, 0, is_gradual=False, kind="embedding")
        return await self._begin(order, receipt)

    async def _begin(
        self, order: MeterOrder, receipt: Receipt, *, is_limited: bool = True
    ) -> "RequestSpending":
        spending, actor = self._spending, self._actor
        tokens = order.prompt_tokens + (order.max_tokens if is_limited else 0)
        try:
            admission = spending.limits.begin(actor, tokens=tokens)  # 2
            if admission is None:
                await in_task()
                admission = await spending.limits.begin_later(actor, tokens=tokens)
        except RateLimited as error:
            receipt.header_lines = render_fields(error.headers)
            raise
        receipt.header_lines = admission.header_lines()
        try:
            if (quotas := spending.quotas) is not None and not quotas.try_take(self._payer.user_id):
                await in_task()
                await quotas.take(self._payer.user_id)
            if spending.latest is not None:
                await self._show_spending(spending.latest, receipt)
            meter = spending.metering.try_begin(order)  # 4
            if meter is None:
                await in_task()
                meter = await spending.metering.begin(order)
        except SpendingLimited as error:
            admission.end(tokens=0)
            receipt.header_lines += "X-GuardRails-Exceeded: true\r\n"
            if spending.latest is None:
                raise
            raise await spending.latest.refusal(self._payer.wallet_id, error.needed_musd) from None
        except BaseException:
            admission.end(tokens=0)
            raise
        return RequestSpending(spending, meter, admission, order, receipt)

    async def _show_spending(self, latest: LatestSpending, receipt: Receipt) -> None:
        """Let the response say what was spent in each window that has a limit."""
        headers = latest.try_headers(self._payer.wallet_id)
        if headers is None:
            await in_task()
            headers = await latest.headers(self._payer.wallet_id)
        receipt.header_lines += render_fields(headers)

    def _order(self, request: EngineRequest) -> MeterOrder:
        """Say what is to be metered.

        Raises:
            PaymentRequired: The model has no price.
        """
        spending = self._spending
        at_ms = int(spending.clock.now_s() * 1000)
        is_embedding = request.operation is Operation.EMBEDDING
        most = 0 if is_embedding else read_max_tokens(request)
        return MeterOrder(
            self._payer,
            spending.prices().price_of(request.public_model, at_ms),
            request.public_model,
            estimate_request(request),
            most,
            request.stream,
            "embedding" if is_embedding else "inference",
        )


class RequestSpending:
    """The meter of one request (see `engines.billing.RequestMeter`)."""

    __slots__ = (
        "_admission",
        "_meter",
        "_order",
        "_receipt",
        "_spending",
        "_tokens",
        "is_remote",
        "took",
    )

    def __init__(
        self,
        spending: Spending,
        meter: Meter,
        admission: RateAdmission,
        order: MeterOrder,
        receipt: Receipt,
    ) -> None:
        self._spending = spending
        self._meter = meter
        self._admission = admission
        self._order = order
        self._receipt = receipt
        self._tokens = 0
        self.is_remote = False
        self.took = meter.took  # called for each piece: without a step between

    @property
    def counted(self) -> TokenCounts:
        """Tokens of the running attempt as we count them."""
        return TokenCounts(self._order.prompt_tokens, 0, self._meter.counted_tokens)

    @property
    def stop_reason(self) -> str:
        """Why `took` has ended the response; "" = it has not."""
        if self._meter.is_store_away:
            return STORE_AWAY
        return STOP_REASON if self._meter.is_stopped else ""

    def begin_attempt(self, backend: str, served_model: str, *, is_remote: bool) -> None:
        """Note that the request is sent to a backend now (see RequestMeter)."""
        self.is_remote = is_remote
        supply = self._spending.supply_of(backend) if is_remote else None
        self._meter.attempt(served_model, backend, supply=supply)

    async def took_later(self, events: int, n_bytes: int) -> bool:
        """Count a piece that `took` has refused, after a wait (see RequestMeter)."""
        return await self._meter.took_later(events, n_bytes)

    def took_whole(self, text_bytes: int) -> None:
        """Count a whole response of which the engine told no tokens (see RequestMeter)."""
        self._meter.took_whole(text_bytes)

    def end_attempt(self, outcome: Outcome, usage: TokenCounts | None) -> None:
        """Charge the attempt that runs (see RequestMeter); a fault is logged, the response goes out."""
        try:
            self._charge(outcome, usage)
        except Exception as error:  # the journal has it: what was held is settled at the next start
            log.error("not_charged", id=self._receipt.id, error=repr(error), exc_info=error)

    def _charge(self, outcome: Outcome, usage: TokenCounts | None) -> None:
        own = TokenUsage(usage.prompt, usage.cached, usage.completion) if usage is not None else None
        ending = Ending.COMPLETE if outcome is Outcome.OK else ENDING_OF_OUTCOME[outcome.value]
        settlement = self._meter.end(ending, own)
        if settlement is not None:
            self._note(settlement)
            if self._meter.is_stopped:
                stopped, reason = self._spending.stopped, self.stop_reason
                stopped[reason] = stopped.get(reason, 0) + 1

    def _note(self, settlement: Settlement) -> None:
        """Show the charge in the receipt; what was spent for several attempts is added up."""
        end, receipt = settlement.end, self._receipt
        cost = to_dollars(end.charged_musd)
        if receipt.billing is not None:
            cost = round(receipt.billing["cost"] + cost, 6)
        self._tokens += end.read + end.written
        receipt.billing = {
            "cost": cost,
            "source": end.source,
            "price_version": settlement.note.price_version,
        }

    def close(self) -> None:
        """Give back what is held, and the place among the requests at the same time; a fault is logged."""
        try:
            self._meter.close()
        except Exception as error:
            log.error("not_released", id=self._receipt.id, error=repr(error), exc_info=error)
        finally:
            self._admission.end(tokens=self._tokens)


def read_max_tokens(request: EngineRequest) -> int:
    """Return the most tokens that all choices of a response can have; 0 = the client set no limit.

    Of two names the larger value counts: engines differ in which one they read.
    """
    raw = request.raw
    if raw is not None and request.parsed is None:
        if b"tokens" not in raw:
            return 0
        if request.choices and (asked := read_typed(_decode_limits, raw)) is not None:
            most = max(asked.max_completion_tokens or 0, asked.max_tokens or 0, 0)
            return most * request.choices
    body = request.body
    found = [
        value
        for name in MAX_TOKENS_NAMES
        if isinstance(value := body.get(name), int) and not isinstance(value, bool) and value > 0
    ]
    return max(found) * (request.choices or count_choices(body)) if found else 0


def limit_whole(request: EngineRequest, most: int) -> int:
    """Limit a whole response to what is held for it: nothing more can be held while it is written.

    1. the client set a limit     → that one; a name of llama.cpp's own that would win over it is left out
    2. its bytes can be added to  → the limit is added
    3. otherwise                  → the body is rendered with it

    Args:
        request: A limit is added to its body where it has none.
        most: The most tokens of all choices by the client's limit; 0 = it set none.

    Returns:
        The most tokens of all choices.
    """
    raw = request.raw
    has_other = raw is not None and (b"predict" in raw or b"\\u00" in raw)
    if raw is not None and not has_other:
        if most:
            return most  # 1
        if request.parsed is None and request.choices and b"tokens" not in raw and raw.endswith(b"}"):
            request.raw = b"".join((raw[:-1], _LIMIT))  # 2
            return WHOLE_ANSWER_TOKENS * request.choices
    body = dict(request.body)
    other = body.pop("n_predict", None)
    if not most:  # 3
        body.pop("max_completion_tokens", None)
        is_given = isinstance(other, int) and not isinstance(other, bool) and other > 0
        limit = body["max_tokens"] = other if is_given else WHOLE_ANSWER_TOKENS
        most = limit * (request.choices or count_choices(body))
    request.parsed = body
    if raw is not None:
        request.raw = jsons.dumps(body)
    return most


def estimate_request(request: EngineRequest) -> int:
    """Return about how many tokens the prompt has: by its bytes, and by the number of its pictures."""
    raw = request.raw
    if raw is not None and (len(raw) <= MAX_UNREAD_BYTES or (request.parsed is None and b"image" not in raw)):
        return estimate_prompt(len(raw))
    body = request.body
    texts, pictures = 0, 0
    pending: list[Any] = [body.get("messages"), body.get("prompt"), body.get("input"), body.get("tools")]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            texts += len(value.encode())
        elif isinstance(value, list):
            if value and isinstance(value[0], int):
                texts += 3 * len(value)  # token ids
            else:
                pending += value
        elif isinstance(value, dict):
            if value.get("type") in {"image_url", "input_image", "image"}:
                pictures += 1
            else:
                pending += value.values()
    return estimate_prompt(texts, pictures)
