"""What callers send about users: e-mail addresses, names, and what an administrator changes."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Final

from appliance.accounts.actor import Limits, read_limits
from appliance.base.errors import Invalid

MAX_EMAIL_CHARACTERS: Final = 254
MAX_NAME_CHARACTERS: Final = 200
MAX_PLAN_CHARACTERS: Final = 64
_EMAIL: Final = re.compile(r"[^\s@<>\",;:\\()\[\]]{1,64}@[^\s@<>\",;:\\()\[\]]{1,253}")


@dataclass(frozen=True, slots=True)
class UserChange:
    """What an administrator changes of a user; None = it stays.

    Attributes:
        limits: The user's own limits, all of them.
        plan: The name of a plan; "" = none.
    """

    name: str | None = None
    is_active: bool | None = None
    is_admin: bool | None = None
    plan: str | None = None
    limits: Limits | None = None


def read_email(value: object) -> str:
    """Read an e-mail address; it is kept in lower case, and in one form of letters that have several (NFKC).

    Raises:
        Invalid: It is none.
    """
    given = value if isinstance(value, str) and len(value) <= 4 * MAX_EMAIL_CHARACTERS else ""
    text = unicodedata.normalize("NFKC", given).strip().lower()
    if len(text) <= MAX_EMAIL_CHARACTERS and text.isprintable() and _EMAIL.fullmatch(text):
        return text
    raise Invalid(
        "email: what was sent is no e-mail address, such as name@example.org.",  # it may be a password
        param="email",
        code="invalid_email",
    )


def read_name(value: object, *, most: int = MAX_NAME_CHARACTERS) -> str:
    """Read the name of a user, or that which a user gives to a key.

    Args:
        most: Its characters.

    Raises:
        Invalid: It is no printable text of 1 to `most` characters.
    """
    text = value.strip() if isinstance(value, str) else ""
    if 0 < len(text) <= most and text.isprintable():
        return text
    raise Invalid(
        f"name: {repr(value)[:60]} is not allowed: 1 to {most} printable characters.",
        param="name",
    )


def read_change(body: object) -> UserChange:
    """Read what an administrator changes: `{name, is_active, is_admin, plan, limits}`, each of them optional.

    Raises:
        Invalid: A field is unknown, or has a value that is not allowed.
    """
    if not isinstance(body, dict):
        raise Invalid("The body must be a JSON object.")
    known = ("name", "is_active", "is_admin", "plan", "limits")
    for field in body:
        if field not in known:
            raise Invalid(
                f"{str(field)[:40]}: there is no such field. Known: {', '.join(known)}.",
                param=str(field)[:40],
            )
    if not body:
        raise Invalid(f"There is nothing to change. Known fields: {', '.join(known)}.")
    return UserChange(
        name=read_name(body["name"]) if "name" in body else None,
        is_active=_read_flag(body, "is_active"),
        is_admin=_read_flag(body, "is_admin"),
        plan=_read_plan(body["plan"]) if "plan" in body else None,
        limits=_read_limits(body["limits"]) if "limits" in body else None,
    )


def _read_limits(value: object) -> Limits:
    limits = read_limits(value)
    if limits.monthly_cap_musd is not None:
        raise Invalid(
            "limits.monthly_cap is of API keys; a user has none. What a user may spend is set by its credits "
            "(plan, cap) and by the limits on spending (GUARDRAILS_…).",
            param="limits.monthly_cap",
        )
    return limits


def _read_flag(body: dict[str, Any], field: str) -> bool | None:
    value = body.get(field)
    if field not in body or isinstance(value, bool):
        return value
    raise Invalid(f"{field}: {repr(value)[:40]} is not allowed: true or false.", param=field)


def _read_plan(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str) and len(value) <= MAX_PLAN_CHARACTERS and value.isprintable():
        return value.strip()
    raise Invalid(
        f"plan: {repr(value)[:60]} is not allowed: up to {MAX_PLAN_CHARACTERS} printable characters.",
        param="plan",
    )
