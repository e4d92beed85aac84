"""Users, keys, sessions, credits and prices as messages, and prices of messages."""

from typing import Any

from appliance.accounts.actor import LIMIT_NAMES
from appliance.accounts.issued_keys import StoredKey
from appliance.accounts.price_file import MAX_MARKUP_PERCENT, MAX_MODEL_CHARS
from appliance.accounts.prices import Price
from appliance.accounts.refresh_rules import SessionRow
from appliance.accounts.users import StoredUser
from appliance.accounts.wallets import Wallet
from appliance.base.errors import Invalid
from appliance.base.money import MAX_MUSD
from appliance.control.convert.values import to_sendable, to_timestamp
from appliance.control.v1 import control_pb2 as pb


def _at(at_ms: int | None) -> Any:
    return to_timestamp(None if at_ms is None else at_ms / 1000)


def to_user(user: StoredUser) -> pb.User:
    """Return a user as a message."""
    return pb.User(
        id=user.id,
        email=to_sendable(user.email),
        name=to_sendable(user.name),
        is_admin=user.is_admin,
        is_active=user.is_active,
        plan=to_sendable(user.plan),
        created_at=_at(user.created_at_ms),
        limits=pb.UserLimits(**{name: getattr(user.limits, name) for name in LIMIT_NAMES}),
    )


def from_user_limits(message: pb.UserLimits) -> dict[str, int]:
    """Return the limits of a message as JSON has them; whether they are allowed is not looked at."""
    return {field.name: value for field, value in message.ListFields()}


def to_credits(wallet: Wallet) -> pb.Credits:
    """Return what a wallet has as a message."""
    return pb.Credits(
        remaining_musd=wallet.remaining_musd,
        total_musd=wallet.total_musd,
        overage_musd=wallet.overage_musd,
        cap_musd=wallet.cap_musd,
        held_musd=wallet.leased_musd,
        owed_musd=wallet.owed_musd,
        auto_renew=wallet.auto_renew,
        period_end=_at(wallet.period_end_ms),
    )


def to_api_key(key: StoredKey) -> pb.ApiKey:
    """Return a key, without its text, as a message."""
    return pb.ApiKey(
        id=key.id,
        prefix=key.prefix,
        name=to_sendable(key.name),
        scopes=sorted(key.scopes),
        models=[to_sendable(model) for model in key.models],
        stay_local=key.stay_local,
        is_active=key.is_active,
        created_at=_at(key.created_at_ms),
        last_used_at=_at(key.last_used_at_ms),
        expires_at=_at(key.expires_at_ms),
    )


def to_user_session(row: SessionRow) -> pb.UserSession:
    """Return a session, without its tokens, as a message."""
    return pb.UserSession(
        id=row.id,
        ip_address=to_sendable(row.ip_address),
        user_agent=to_sendable(row.user_agent),
        created_at=_at(row.created_at_ms),
        last_used_at=_at(row.rotated_at_ms or row.created_at_ms),
        expires_at=_at(row.expires_at_ms),
    )


def to_model_price(price: Price) -> pb.ModelPrice:
    """Return a price as a message."""
    return pb.ModelPrice(
        model=to_sendable(price.model),
        version=price.version,
        valid_from=_at(price.valid_from_ms) if price.valid_from_ms else None,
        in_musd=price.in_per_mtok,
        cached_in_musd=price.cached_in_per_mtok,
        out_musd=price.out_per_mtok,
        embedding_musd=price.embedding_per_mtok,
        per_request_musd=price.per_request_musd,
        gpu_hour_markup_percent=price.gpu_hour_markup_percent,
        source=price.source,
    )


def from_model_price(message: pb.ModelPrice, place: int) -> Price:
    """Return the price of a message.

    Args:
        message: Its version and source do not count.
        place: Which one of the request it is, from 0, for the error.

    Raises:
        Invalid: A field has a value that is not allowed.
    """
    field = f"prices[{place}]"
    if not 1 <= len(message.model) <= MAX_MODEL_CHARS or not message.model.isprintable():
        raise Invalid(
            f"`{field}.model` must be a model's public name of 1 to {MAX_MODEL_CHARS} characters, or *.",
            param=f"{field}.model",
        )
    amounts = {
        "in_musd": message.in_musd,
        "cached_in_musd": message.cached_in_musd if message.HasField("cached_in_musd") else message.in_musd,
        "out_musd": message.out_musd,
        "embedding_musd": message.embedding_musd if message.HasField("embedding_musd") else message.in_musd,
        "per_request_musd": message.per_request_musd,
    }
    for name, musd in amounts.items():
        if not 0 <= musd <= MAX_MUSD:
            raise Invalid(
                f"`{field}.{name}` must be from 0 to {MAX_MUSD}, not {musd}.", param=f"{field}.{name}"
            )
    if message.gpu_hour_markup_percent > MAX_MARKUP_PERCENT:
        raise Invalid(
            f"`{field}.gpu_hour_markup_percent` must be from 0 to {MAX_MARKUP_PERCENT}, not "
            f"{message.gpu_hour_markup_percent}.",
            param=f"{field}.gpu_hour_markup_percent",
        )
    return Price(
        message.model,
        valid_from_ms=_to_ms(message, field) if message.HasField("valid_from") else 0,
        in_per_mtok=amounts["in_musd"],
        cached_in_per_mtok=amounts["cached_in_musd"],
        out_per_mtok=amounts["out_musd"],
        embedding_per_mtok=amounts["embedding_musd"],
        per_request_musd=amounts["per_request_musd"],
        gpu_hour_markup_percent=message.gpu_hour_markup_percent,
    )


def _to_ms(message: pb.ModelPrice, field: str) -> int:
    at_ms = message.valid_from.seconds * 1000 + message.valid_from.nanos // 1_000_000
    if not 0 < at_ms < 1 << 53:
        raise Invalid(f"`{field}.valid_from` must be after 1970.", param=f"{field}.valid_from")
    return at_ms
