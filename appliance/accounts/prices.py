"""The price book: what tokens of a model cost, by versions that never change.

A request is billed by the version that was valid when it began, also where a new one begins meanwhile.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from appliance.base.errors import PaymentRequired
from appliance.base.money import format_dollars, round_up

ANY_MODEL = "*"


class TokenUsage(msgspec.Struct, frozen=True):
    """Tokens of one attempt.

    Attributes:
        read: Of the prompt, those from the cache included.
        cached: Of these, read from the engine's prompt cache.
        written: Of the response.
    """

    read: int = 0
    cached: int = 0
    written: int = 0


NO_TOKENS = TokenUsage()


@dataclass(frozen=True, slots=True)
class Price:
    """What one model costs, in one version.

    Attributes:
        model: The model's public name; `*` = every model without a price of its own.
        version: Counts up with each change of the model's price in the database; 0 = it is not of there.
        valid_from_ms: When it begins, epoch milliseconds.
        in_per_mtok: Prompt tokens, micro-dollars per 1,000,000.
        cached_in_per_mtok: Prompt tokens from the engine's cache.
        out_per_mtok: Tokens of the response.
        embedding_per_mtok: Prompt tokens of embeddings.
        per_request_musd: Added for each request that got a response.
        gpu_hour_markup_percent: Added to a provider's price of a rented GPU.
    """

    model: str
    version: int = 0
    valid_from_ms: int = 0
    in_per_mtok: int = 0
    cached_in_per_mtok: int = 0
    out_per_mtok: int = 0
    embedding_per_mtok: int = 0
    per_request_musd: int = 0
    gpu_hour_markup_percent: int = 0

    @property
    def source(self) -> str:
        """Where it stands: in the `database`, or in the `file` of PRICES_FILE, which has no versions."""
        return "database" if self.version else "file"

    @property
    def has_token_prices(self) -> bool:
        """Whether tokens cost something."""
        return bool(
            self.in_per_mtok or self.cached_in_per_mtok or self.out_per_mtok or self.embedding_per_mtok
        )

    @property
    def is_free(self) -> bool:
        """Whether requests cost nothing."""
        return not (self.has_token_prices or self.per_request_musd)

    def cost_musd(self, tokens: TokenUsage, *, is_embedding: bool = False) -> int:
        """Return what an attempt costs, micro-dollars, rounded up once on the sum.

        More cached tokens than prompt tokens count as all of the prompt; negative counts as 0.
        """
        read, cached, written = tokens.read, tokens.cached, tokens.written
        read = read if read > 0 else 0
        if is_embedding:
            return self.per_request_musd + round_up(read * self.embedding_per_mtok)
        priced = read * self.in_per_mtok
        if cached > 0:
            priced += min(cached, read) * (self.cached_in_per_mtok - self.in_per_mtok)
        if written > 0:
            priced += written * self.out_per_mtok
        return self.per_request_musd + round_up(priced)

    def describe(self) -> str:
        """Return the figures for people: `0.60 in, 0.15 cached, 0.80 out per 1M tokens`."""
        text = (
            f"{format_dollars(self.in_per_mtok)} in, {format_dollars(self.cached_in_per_mtok)} cached, "
            f"{format_dollars(self.out_per_mtok)} out per 1M tokens"
        )
        return f"{text}, {format_dollars(self.per_request_musd)} a request" if self.per_request_musd else text


FREE = Price("", in_per_mtok=0)


def join_prices(stored: Iterable[Price], of_file: Iterable[Price]) -> list[Price]:
    """Return the prices that count: those of the database, and of the file where that has none of a model."""
    found = list(stored)
    names = {price.model for price in found}
    return [*found, *(price for price in of_file if price.model not in names)]


@dataclass(slots=True)
class _Versions:
    """The prices of one model, in the order in which they become valid."""

    starts_ms: list[int] = field(default_factory=list)
    prices: list[Price] = field(default_factory=list)


class PriceBook:
    """All prices. Build a new one where prices change: it is read without a lock.

    Args:
        prices: In any order. Of two that begin at the same time, the higher version counts.
        is_unpriced_free: Models without a price cost nothing; False = they are refused.
    """

    def __init__(self, prices: Iterable[Price] = (), *, is_unpriced_free: bool = False) -> None:
        self._by_model: dict[str, _Versions] = defaultdict(_Versions)
        for price in sorted(prices, key=lambda one: (one.valid_from_ms, one.version)):
            versions = self._by_model[price.model]
            versions.starts_ms.append(price.valid_from_ms)
            versions.prices.append(price)
        self._by_model = dict(self._by_model)
        self.is_unpriced_free = is_unpriced_free

    def find(self, model: str, at_ms: int) -> Price | None:
        """Return the price of `model` at a time, else that of `*`; None = there is none.

        Args:
            model: Its public name.
            at_ms: Epoch milliseconds.
        """
        return self.find_own(model, at_ms) or self.find_own(ANY_MODEL, at_ms)

    def find_own(self, name: str, at_ms: int) -> Price | None:
        """Return the price under exactly this name at a time; None = there is none."""
        versions = self._by_model.get(name)
        if versions is not None and (number := bisect_right(versions.starts_ms, at_ms)):
            return versions.prices[number - 1]
        return None

    def price_of(self, model: str, at_ms: int) -> Price:
        """Return the price by which a request is billed that begins now.

        Raises:
            PaymentRequired: The model has no price, and such models are refused.
        """
        price = self.find(model, at_ms)
        if price is not None:
            return price
        if self.is_unpriced_free:
            return FREE
        raise PaymentRequired(
            f"Model {model!r} has no price, so a request for it cannot be billed. Ask the operator for one.",
            param="model",
            code="price_unknown",
        )

    def __len__(self) -> int:
        return sum(len(versions.prices) for versions in self._by_model.values())

    def current(self, at_ms: int) -> list[Price]:
        """Return the price that is valid at a time for each model that has one, by name."""
        found = (self.find(model, at_ms) for model in sorted(self._by_model) if model != ANY_MODEL)
        default = self.find(ANY_MODEL, at_ms)
        own = [price for price in found if price is not None and price.model != ANY_MODEL]
        return own if default is None else [*own, default]
