"""Checks of the settings of the markets, together with those of other packages."""

from appliance.accounts.settings import AccountSettings
from appliance.base.settings import Problem
from appliance.market.settings import MarketSettings


def check_market(market: MarketSettings, accounts: AccountSettings) -> list[Problem]:
    """Return the problems of the markets' settings; some are warnings. Without MARKET there are none."""
    if not market.market:
        return []
    problems = []
    if not accounts.accounts:
        remedy = "Rented GPUs are paid from the credits of users, and there are none. Set ACCOUNTS=1."
        problems.append(Problem("MARKET", "1", "1, with ACCOUNTS=1", remedy))
    if not any(key.get_secret_value() for key in (market.vastai_api_key, market.ionet_api_key)):
        remedy = "No market has a key, so nothing can be rented. Set VASTAI_API_KEY or IONET_API_KEY."
        problems.append(Problem("MARKET", "1", "1, with the key of a market", remedy, is_fatal=False))
    return problems
