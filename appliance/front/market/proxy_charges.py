"""What a request through the proxy costs: the price of `proxy.request`, once its target answers."""

from typing import Final

from appliance.engines.billing import RequestMeter
from appliance.engines.outcome import Outcome
from appliance.front.pipeline.request import Request

ITEM: Final = "proxy.request"


class ProxyCharge:
    """The price of one request: held before, charged when the target has answered, else given back."""

    __slots__ = ("_has_closed", "_meter")

    def __init__(self, meter: RequestMeter | None) -> None:
        self._meter = meter
        self._has_closed = False

    @classmethod
    async def begin(cls, request: Request) -> "ProxyCharge":
        """Check the caller's rates, and hold the price.

        Raises:
            PaymentRequired: The credits, or a limit on spending, do not allow it.
            Exhausted: A rate limit is reached.
            Unavailable: The database cannot be asked, and what was set aside is used up.
        """
        billing = request.options.billing
        return cls(None if billing is None else await billing.begin_item(ITEM, request.receipt))

    def answered(self, protocol: str) -> None:
        """Charge it: the target has answered.

        Args:
            protocol: By which it was asked; usage shows it.
        """
        if self._meter is not None:
            self._meter.begin_attempt(protocol, ITEM, is_remote=False)
            self._meter.took(1, 1)
            self._meter.end_attempt(Outcome.PASSED, None)

    def close(self) -> None:
        """Give back what was not charged; again, nothing happens."""
        if self._meter is not None and not self._has_closed:
            self._has_closed = True
            self._meter.close()
