"""Who calls, and what a caller may do: facts of users and keys, and the rules of access as one table.

Facts are read from the database once and shared by all requests of a caller (see `snapshot`); nothing here
looks anything up.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from appliance.base.errors import Forbidden, Invalid
from appliance.base.money import parse_musd

Level = Literal["public", "client", "account", "operator"]
ActorKind = Literal["anybody", "static", "operator", "user"]

SCOPES: Final = ("inference", "market", "billing", "proxy", "admin")
DEFAULT_SCOPES: Final = frozenset(SCOPES) - {"admin"}
MAX_LIMIT: Final = 1_000_000_000_000
MAX_MODELS: Final = 200
MAX_MODEL_CHARACTERS: Final = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """What one user or one key may do at most; None = no limit of its own.

    Attributes:
        rpm: Requests per minute.
        rpd: Requests per day.
        tpm: Tokens per minute.
        tpd: Tokens per day.
        concurrency: Requests at the same time.
        monthly_cap_musd: What may be spent per month, in micro-dollars.
    """

    rpm: int | None = None
    rpd: int | None = None
    tpm: int | None = None
    tpd: int | None = None
    concurrency: int | None = None
    monthly_cap_musd: int | None = None


NO_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class UserFacts:
    """What is known of a user.

    Attributes:
        id: Never changes.
        email: In lower case.
        is_active: False = may not call at all.
        wallet_id: Whose money a request spends.
        plan: The name of the user's plan; "" = none.
        limits: Of all keys and sessions of the user together.
    """

    id: str
    email: str
    is_admin: bool = False
    is_active: bool = True
    wallet_id: str = ""
    plan: str = ""
    limits: Limits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """What is known of an API key; the key itself is not.

    Attributes:
        prefix: Its public part, for lists and logs.
        scopes: Of `SCOPES`.
        models: Names, or beginnings with `*` after them; empty = every model.
        limits: Of this key alone.
        stay_local: Its requests are answered by own backends only.
        expires_at_s: Seconds since 1970; None = never.
    """

    id: str
    prefix: str
    scopes: frozenset[str] = DEFAULT_SCOPES
    models: tuple[str, ...] = ()
    limits: Limits = NO_LIMITS
    stay_local: bool = False
    expires_at_s: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Actor:
    """Who calls. One object per known key, made anew when what is known of it changes.

    Attributes:
        kind: `static` and `operator` = a key of the settings; `user` = an API key or a session.
        user: None = no account. A static key has one where STATIC_KEYS_USER is set.
        key: None = a session, or no API key.
        flow: Whose turn it is in the fair queue.
        limits_id: Under which name rates are counted; "" = none are.
        session_id: Of a session; "" = a key.
        stay_local: Its requests are answered by own backends only.
    """

    kind: ActorKind
    user: UserFacts | None = None
    key: KeyFacts | None = None
    flow: str = ""
    limits_id: str = ""
    session_id: str = ""
    stay_local: bool = False


ANYBODY: Final = Actor("anybody")


def check_access(actor: Actor, level: Level, scope: str, *, has_operator_keys: bool) -> None:
    """Check that a caller whose credential is known may call an address of `level`.

    | level    | anybody | static key               | operator key | API key                    | session |
    | public   | yes     | yes                      | yes          | yes                        | yes     |
    | client   | no      | yes                      | yes          | with the scope             | yes     |
    | account  | no      | 403 account_required     | 403 likewise | with the scope             | yes     |
    | operator | no      | without operator keys    | yes          | scope admin + of an admin  | admins  |
    | … money  | no      | 403 operator_only        | yes          | scope admin + of an admin  | admins  |

    The last row is operators' addresses with the scope `admin`, of users, prices and money: clients have
    static keys, and with them any of them could grant credits.

    Args:
        scope: Which the address asks of API keys: `inference` at clients' addresses; "" = any API key may.
        has_operator_keys: Whether OPERATOR_API_KEYS is set.

    Raises:
        Forbidden: The credential does not open this address.
    """
    if level == "public":
        return
    kind = actor.kind
    if kind == "user":
        _check_user(actor, level, scope)
    elif level == "account":
        raise Forbidden(
            "This address belongs to an account, and the key sent is one of the settings. "
            "Send an API key of a user, or log in and send the access token.",
            code="account_required",
        )
    elif level == "operator" and kind == "static" and scope == "admin":
        raise Forbidden(
            "This address needs a key of OPERATOR_API_KEYS, or an administrator: a key of APPLIANCE_API_KEYS "
            "does not open users, prices and money.",
            code="operator_only",
        )
    elif level == "operator" and kind != "operator" and (kind != "static" or has_operator_keys):
        raise Forbidden("This address needs a key of OPERATOR_API_KEYS.", code="operator_only")


def _check_user(actor: Actor, level: Level, scope: str) -> None:
    key = actor.key
    wanted = "admin" if level == "operator" else scope
    if key is not None and wanted and wanted not in key.scopes:
        has = ", ".join(one for one in SCOPES if one in key.scopes) or "none"
        raise Forbidden(
            f"This address needs an API key with the scope {wanted}; the key {key.prefix} has: {has}. "
            "Make a key with this scope.",
            code="scope_missing",
        )
    if level == "operator" and not (actor.user is not None and actor.user.is_admin):
        raise Forbidden("This address is for administrators.", code="operator_only")


def check_model(actor: Actor, model: str) -> None:
    """Check that the caller's key may use a model.

    Raises:
        Forbidden: The key has a list of models, and this one is not in it.
    """
    key = actor.key
    if key is None or not key.models or allows_model(key.models, model):
        return
    raise Forbidden(
        f"The key {key.prefix} may not use the model {model[:MAX_MODEL_CHARACTERS]!r}. "
        f"Allowed: {', '.join(key.models)}.",
        param="model",
        code="model_not_allowed",
    )


def allows_model(models: Iterable[str], model: str) -> bool:
    """Whether a list of models has a name; an entry that ends with `*` stands for all that begin so."""
    return any(model.startswith(entry[:-1]) if entry.endswith("*") else model == entry for entry in models)


def read_scopes(value: object) -> frozenset[str]:
    """Read the scopes of a new key; None = all but admin.

    Raises:
        Invalid: It is no list of known scopes, or an empty one.
    """
    if value is None:
        return DEFAULT_SCOPES
    if isinstance(value, list) and value and all(isinstance(one, str) and one in SCOPES for one in value):
        return frozenset(value)
    raise Invalid(
        f"scopes: {_shown(value)} is not allowed: a list of {', '.join(SCOPES)}, at least one.",
        param="scopes",
    )


def read_models(value: object) -> tuple[str, ...]:
    """Read the list of models that a new key may use; None or [] = every one.

    Raises:
        Invalid: It is no list of names.
    """
    if value is None:
        return ()
    if isinstance(value, list) and len(value) <= MAX_MODELS and all(map(_is_model, value)):
        return tuple(dict.fromkeys(value))
    raise Invalid(
        f"models: {_shown(value)} is not allowed: a list of up to {MAX_MODELS} names of models, each up to "
        f"{MAX_MODEL_CHARACTERS} characters; `name*` stands for all that begin with `name`.",
        param="models",
    )


def _is_model(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_MODEL_CHARACTERS and value.isprintable()


LIMIT_NAMES: Final = ("rpm", "rpd", "tpm", "tpd", "concurrency")


def read_limits(value: object) -> Limits:
    """Read limits as JSON has them, `{rpm, rpd, tpm, tpd, concurrency, monthly_cap}`; null = no limit.

    Args:
        value: The object; `monthly_cap` is in dollars, a number with up to 6 decimals. None = no limits.

    Raises:
        Invalid: A name or a value is not allowed.
    """
    if value is None:
        return NO_LIMITS
    if not isinstance(value, dict):
        raise Invalid(f"limits: {_shown(value)} is not an object.", param="limits")
    known = (*LIMIT_NAMES, "monthly_cap")
    for name in value:
        if name not in known:
            raise Invalid(
                f"limits.{str(name)[:40]}: there is no such limit. Known: {', '.join(known)}.", param="limits"
            )
    numbers = {name: _read_limit(name, value.get(name)) for name in LIMIT_NAMES}
    return Limits(**numbers, monthly_cap_musd=_read_cap(value.get("monthly_cap")))


def _read_limit(name: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_LIMIT:
        return value
    raise Invalid(
        f"limits.{name}: {_shown(value)} is not allowed: a whole number from 1 to {MAX_LIMIT}, or null.",
        param=f"limits.{name}",
    )


def _read_cap(value: object) -> int | None:
    if value is None:
        return None
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return parse_musd(value)
    except ValueError:
        pass
    raise Invalid(
        f"limits.monthly_cap: {_shown(value)} is not allowed: dollars from 0 to 1000000000 with up to 6 "
        "decimals, or null.",
        param="limits.monthly_cap",
    )


def render_limits(limits: Limits) -> dict[str, int | float | None]:
    """Render limits as JSON has them; the cap in dollars."""
    cap = limits.monthly_cap_musd
    return {
        **{name: getattr(limits, name) for name in LIMIT_NAMES},
        "monthly_cap": None if cap is None else cap / 1_000_000,
    }


def _shown(value: object) -> str:
    return repr(value)[:100]
