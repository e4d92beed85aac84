"""All handler groups of accounts and money, joined: what a serving appliance has where ACCOUNTS is on."""

from collections.abc import Callable, Iterable
from functools import partial

from appliance.accounts.audit import find_differences
from appliance.accounts.audit_log import read_audit
from appliance.accounts.identity import Identity
from appliance.accounts.ledger import balances, entries_of
from appliance.accounts.money import MoneyStore
from appliance.accounts.prices import Price
from appliance.accounts.user_export import export_user
from appliance.front.accounts.admin import AdminUserHandlers
from appliance.front.accounts.api_keys import ApiKeyHandlers
from appliance.front.accounts.auth import AuthHandlers
from appliance.front.accounts.billing import BillingHandlers
from appliance.front.accounts.guardrails import GuardrailHandlers
from appliance.front.accounts.money import AdminMoneyHandlers, MoneyViews
from appliance.front.accounts.users import UserHandlers
from appliance.front.events.handlers import EventHandlers
from appliance.front.pipeline.route import RouteGroup

SECTIONS: tuple[tuple[str, tuple[type[RouteGroup], ...]], ...] = (
    ("Accounts (ACCOUNTS=1)", (AuthHandlers, ApiKeyHandlers, UserHandlers)),
    ("Credits and limits on spending (ACCOUNTS=1)", (BillingHandlers, GuardrailHandlers)),
    ("Events (ACCOUNTS=1)", (EventHandlers,)),
    ("Users and money, for operators (ACCOUNTS=1)", (AdminUserHandlers, AdminMoneyHandlers)),
)


def build_groups(
    identity: Identity, store: MoneyStore, *, file_prices: Callable[[], Iterable[Price]] = tuple
) -> list[RouteGroup]:
    """Build all groups.

    Args:
        identity: Who calls.
        store: What of the money is in the database.
        file_prices: Returns those of PRICES_FILE now.
    """
    clock, database = identity.clock, identity.database
    export = partial(
        export_user,
        database=database,
        users=identity.users,
        keys=identity.keys,
        sessions=identity.sessions,
        clock=clock,
    )
    views = MoneyViews(
        balances=partial(balances, database),
        differences=partial(find_differences, database),
        audit=partial(read_audit, database),
    )
    return [
        AuthHandlers(identity.users, identity.sessions, identity.tokens),
        ApiKeyHandlers(identity.keys, clock=clock),
        UserHandlers(identity.users, export=export),
        BillingHandlers(
            store.wallets,
            store.usage,
            entries=partial(entries_of, database),
            keys=identity.keys,
            clock=clock,
        ),
        GuardrailHandlers(store.guardrails, may_users_reset=store.settings.guardrails_user_reset),
        AdminUserHandlers(
            identity.users, identity.keys, store.wallets, store.quotas, store.guardrails, clock=clock
        ),
        AdminMoneyHandlers(
            store.prices, store.wallets, store.usage, views=views, clock=clock, file_prices=file_prices
        ),
    ]
