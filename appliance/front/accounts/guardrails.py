"""The addresses of limits on spending. For compatibility, see docs/compatibility.md."""

from functools import partial
from typing import Final

from appliance.accounts.guardrails import Guardrails, WalletSpending
from appliance.base.errors import Forbidden, PaymentRequired
from appliance.front.accounts.bodies import amount_of, read_fields, text_of
from appliance.front.accounts.caller import BASE, user_of
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route

MAX_RECORDED_MUSD: Final = 100_000_000_000  # 100,000 dollars: sums of many stay within 64 bits
WINDOW_CHARACTERS: Final = 40
EXCEEDED: Final = ("X-GuardRails-Exceeded", "true")


class GuardrailHandlers:
    """The handlers of limits on spending.

    Args:
        guardrails: What was spent, and the limits.
        may_users_reset: GUARDRAILS_USER_RESET.
    """

    def __init__(self, guardrails: Guardrails, *, may_users_reset: bool = False) -> None:
        self._guardrails = guardrails
        self._may_users_reset = may_users_reset

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        own = partial(Route, dialect="market", access=Access.ACCOUNT, scope="billing")
        return [
            own(("GET",), f"{BASE}/guardrails/spending", self.spending),
            own(("POST",), f"{BASE}/guardrails/record", self.record),
            own(("POST",), f"{BASE}/guardrails/check", self.check),
            own(("POST",), f"{BASE}/guardrails/reset", self.reset),
        ]

    async def spending(self, request: Request) -> Response:
        """Show what one has spent, in dollars.

        Returns:
            `{user_id, total_spent, window_spent: {window: dollars}, window_limits: {window: dollars},
            violations, timestamp}`; windows are `5min` to `1440min`, `48h`, `72h`.
        """
        user = user_of(request)
        return _info(await self._guardrails.spending(user.wallet_id), user.id)

    async def record(self, request: Request) -> Response:
        """Add to one's spending what was spent elsewhere: `{amount}`, dollars; returns the spending.

        It counts for the limits, and takes no credits.
        """
        user = user_of(request)
        body = read_fields(request, ("amount",), needed=("amount",))
        amount_musd = amount_of(body, "amount", most_musd=MAX_RECORDED_MUSD)
        return _info(await self._guardrails.record(user.wallet_id, amount_musd), user.id)

    async def check(self, request: Request) -> Response:
        """Say whether one may spend so much more: `{estimated_cost}`, dollars; 402 where a limit forbids.

        Returns:
            `{allowed: true, violations: [], spent: {window: dollars}}`. With 402 `{error, code,
            allowed: false, violations: [{window, limit, spent}], spent}` and `X-GuardRails-Exceeded`.
        """
        user = user_of(request)
        body = read_fields(request, ("estimated_cost",), needed=("estimated_cost",))
        estimated_musd = amount_of(body, "estimated_cost")
        try:
            spending = await self._guardrails.check(user.wallet_id, estimated_musd)
        except PaymentRequired as refused:
            return _exceeded(refused, request)
        shown = {"allowed": True, "violations": [], "spent": spending.info(user.id)["window_spent"]}
        return _with(json_response(shown), spending.headers())

    async def reset(self, request: Request) -> Response:
        """Let one's windows begin anew: `{window_name?}`, without it all of them; returns the spending.

        Administrators can; other users only with GUARDRAILS_USER_RESET=1. Nothing that was
        spent is forgotten.
        """
        user, actor = user_of(request), request.actor
        is_operator = user.is_admin and (actor is None or actor.key is None or "admin" in actor.key.scopes)
        if not self._may_users_reset and not is_operator:
            raise Forbidden(
                "Limits on spending are reset by administrators here (GUARDRAILS_USER_RESET).",
                code="operator_only",
            )
        window = window_of(request)
        return _info(await self._guardrails.reset(user.wallet_id, window), user.id)


def window_of(request: Request) -> str:
    """Return the window of a reset; "" = all of them.

    Raises:
        Invalid: `window_name` is no text, or another field is there.
    """
    body = read_fields(request, ("window_name",), is_optional=True)
    return text_of(body, "window_name", characters=WINDOW_CHARACTERS)


def _info(spending: WalletSpending, user_id: str) -> Response:
    return _with(json_response(spending.info(user_id)), spending.headers())


def _exceeded(refused: PaymentRequired, request: Request) -> Response:
    """Return the answer that a limit forbids it: the caller asked, so this is no failure."""
    body = {
        "error": refused.message,
        "code": refused.code,
        "request_id": request.id,
        "allowed": False,
        **refused.details.get("error_fields", {}),
    }
    return _with(json_response(body, 402), [EXCEEDED])


def _with(response: Response, headers: list[tuple[str, str]]) -> Response:
    response.headers += headers
    return response
