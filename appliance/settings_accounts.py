"""Checks of the settings of accounts, together with those of other packages."""

from appliance.accounts.settings import WINDOW_MINUTES, AccountSettings
from appliance.base.settings import Problem
from appliance.front.settings import FrontSettings, split_keys
from appliance.storage.settings import StorageSettings

WINDOWS = (*(f"{minutes}min" for minutes in WINDOW_MINUTES), "48h", "72h")


def check_accounts(
    accounts: AccountSettings, storage: StorageSettings, front: FrontSettings
) -> list[Problem]:
    """Return the problems of the settings of accounts; some are warnings. Without accounts there are none."""
    if not accounts.accounts:
        return []
    return [
        *_sessions(accounts, storage),
        *_one_process(storage, front),
        *_free_credits(accounts),
        *_guardrails_without_effect(accounts),
        *_payer_of_no_keys(accounts, front),
    ]


def check_prices(accounts: AccountSettings, models: set[str]) -> list[Problem]:
    """Warn where users would get 402 for every model, or for each that has no price of its own.

    The database may have prices, too; it is not asked.

    Args:
        accounts: The settings.
        models: Those that PRICES_FILE has prices of; `*` = every other one.
    """
    if not accounts.accounts or accounts.unpriced == "free":
        return []
    if not models:
        remedy = (
            "Users get 402 for every model that has no price in the database. Set PRICES_FILE, set prices by "
            "`aiserve-gpuproxy-admin prices`, or UNPRICED=free."
        )
        return [Problem("PRICES_FILE", "", "a JSON file of prices", remedy, is_fatal=False)]
    if accounts.unpriced == "flat" and "*" not in models:
        remedy = "PRICES_FILE has no price of `*`: models without a price of their own are refused. Add one."
        return [Problem("UNPRICED", "flat", "flat, with a price of `*`", remedy, is_fatal=False)]
    return []


def _sessions(accounts: AccountSettings, storage: StorageSettings) -> list[Problem]:
    if accounts.session_mode != "redis" or storage.redis_host:
        return []
    remedy = "Sessions are to be kept in Redis alone, and there is none. Set REDIS_HOST, or SESSION_MODE=sql."
    return [Problem("SESSION_MODE", "redis", "redis, with REDIS_HOST", remedy)]


def _one_process(storage: StorageSettings, front: FrontSettings) -> list[Problem]:
    is_for_events = front.sidecar_port is not None  # the index of an engine's KV blocks may be there
    if storage.db_kind != "sqlite" or not storage.redis_host or is_for_events:
        return []
    remedy = (
        "SQLite serves one process, and REDIS_HOST is for several: a second replica would have users and "
        "credits of its own. Set DB_HOST for PostgreSQL, or leave REDIS_HOST out."
    )
    return [Problem("DB_TYPE", "sqlite", "postgres, with several replicas", remedy, is_fatal=False)]


def _free_credits(accounts: AccountSettings) -> list[Problem]:
    if accounts.registration != "open" or not accounts.signup_credits_usd:
        return []
    remedy = (
        f"Each registration gets {accounts.signup_credits_usd} dollars, and anyone can register any number "
        "of times. Set REGISTRATION=off or SIGNUP_CREDITS_USD=0, unless it is meant so."
    )
    return [Problem("SIGNUP_CREDITS_USD", str(accounts.signup_credits_usd), "0", remedy, is_fatal=False)]


def _guardrails_without_effect(accounts: AccountSettings) -> list[Problem]:
    limited = [name for name in WINDOWS if getattr(accounts, f"guardrails_max_{name}_rate")]
    if accounts.guardrails_enabled or not limited:
        return []
    remedy = f"The limits of {', '.join(limited)} have no effect. Set GUARDRAILS_ENABLED=1."
    return [Problem("GUARDRAILS_ENABLED", "0", "1, with limits", remedy, is_fatal=False)]


def _payer_of_no_keys(accounts: AccountSettings, front: FrontSettings) -> list[Problem]:
    if not accounts.static_keys_user or split_keys(front.appliance_api_keys):
        return []
    remedy = "It has no effect: APPLIANCE_API_KEYS has no keys for whose requests this user would pay."
    return [
        Problem(
            "STATIC_KEYS_USER",
            accounts.static_keys_user,
            "a user, with APPLIANCE_API_KEYS",
            remedy,
            is_fatal=False,
        )
    ]
