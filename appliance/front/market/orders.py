"""What callers send to rent: filters and orders, each value checked; variables are never shown."""

import math
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from appliance.base.errors import Invalid
from appliance.base.money import MAX_MUSD, MUSD_PER_DOLLAR
from appliance.base.time_limit import HEADER, parse_time_limit_s
from appliance.front.accounts.bodies import amount_of, text_of
from appliance.front.pipeline.request import Request
from appliance.market.rental_types import RentOrder
from appliance.market.types import DEFAULT_IMAGE, OfferFilter

FILTERS: Final = ("min_vram", "max_price", "gpu_model", "location", "min_gpus", "reliability", "verified")
CONFIG: Final = (
    *("image", "disk_gb", "env", "ports", "onstart", "command", "model", "lease_s", "longest_s", "max_cost"),
)
MAX_TEXT: Final = 100
MAX_SCRIPT: Final = 8192
MAX_ITEMS: Final = 256


def read_filter(values: Mapping[str, Any], *, where: str = "") -> OfferFilter:
    """Return the filter of a query (texts) or of a body (numbers and texts).

    Args:
        values: By the names of FILTERS; others do not count.
        where: Before the names in errors, such as `filters.`.

    Raises:
        Invalid: A value is not allowed; it must not count as no filter.
    """
    price = _number(values, "max_price", where, most=1_000_000)
    return OfferFilter(
        min_vram_gb=_optional_float(_number(values, "min_vram", where, most=100_000)) or None,
        max_price_musd_per_h=None if price is None else math.floor(price * MUSD_PER_DOLLAR),
        gpu_model=_text(values, "gpu_model", where),
        location=_text(values, "location", where),
        min_gpus=int(_number(values, "min_gpus", where, most=1000, is_whole=True) or 1),
        min_reliability=_optional_float(_number(values, "reliability", where, most=1)),
        is_verified_only=_flag(values, "verified", where),
    )


def _number(
    values: Mapping[str, Any], name: str, where: str, *, most: int, is_whole: bool = False
) -> Decimal | None:
    value = values.get(name)
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)) > 40:
            raise InvalidOperation
        number = Decimal(str(value))
        if not number.is_finite() or not 0 <= number <= most or (is_whole and number != int(number)):
            raise InvalidOperation
    except InvalidOperation:
        kind = "whole number" if is_whole else "number"
        raise Invalid(
            f"`{where}{name}` must be a {kind} from 0 to {most}, not {str(value)[:40]!r}.",
            param=f"{where}{name}",
            code="invalid_value",
        ) from None
    return number


def _optional_float(number: Decimal | None) -> float | None:
    return None if number is None else float(number)


def _text(values: Mapping[str, Any], name: str, where: str) -> str:
    value = values.get(name)
    if value is None:
        return ""
    if isinstance(value, str) and len(value) <= MAX_TEXT and (not value or value.isprintable()):
        return value.strip()
    raise Invalid(
        f"`{where}{name}` must be a text of up to {MAX_TEXT} printable characters.",
        param=f"{where}{name}",
        code="invalid_value",
    )


def _flag(values: Mapping[str, Any], name: str, where: str) -> bool:
    value = values.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.lower() in ("", "0", "false", "no", "1", "true", "yes"):
        return value.lower() in ("1", "true", "yes")
    raise Invalid(f"`{where}{name}` must be true or false.", param=f"{where}{name}", code="invalid_value")


def read_order(config: Mapping[str, Any], request: Request, *, where: str = "") -> RentOrder:
    """Return the order of a body; X-Timelimit bounds its lease.

    Args:
        config: Fields of CONFIG alone.
        request: Its header X-Timelimit counts.
        where: Before the names in errors, such as `config.`.

    Raises:
        Invalid: A field is unknown, or has a value that is not allowed.
    """
    for name in config:
        if name not in CONFIG:
            raise Invalid(
                f"There is no field {where}{str(name)[:40]} here; there are {', '.join(CONFIG)}.",
                param=f"{where}{str(name)[:40]}",
                code="unknown_field",
            )
    body = dict(config)
    lease = _seconds_of(body, "lease_s", where)
    limit = parse_time_limit_s(request.headers.get(HEADER))
    if limit is not None:
        lease = limit if lease is None else min(lease, limit)
    disk = _seconds_of(body, "disk_gb", where)
    return RentOrder(
        image=text_of(body, "image", characters=500) or DEFAULT_IMAGE,
        disk_gb=20.0 if disk is None else disk,
        environ=_environ(body.get("env"), where),
        ports=_ports(body.get("ports"), where),
        onstart=_script(body.get("onstart"), where),
        command=_command(body.get("command"), where),
        model=text_of(body, "model", characters=200),
        lease_s=lease,
        longest_s=_seconds_of(body, "longest_s", where),
        max_cost_musd=None
        if body.get("max_cost") is None
        else amount_of(body, "max_cost", least_musd=1, most_musd=MAX_MUSD),
    )


def _seconds_of(body: dict[str, Any], name: str, where: str) -> float | None:
    return _optional_float(_number(body, name, where, most=1_000_000_000))


def _wrong(where: str, name: str, allowed: str) -> Invalid:
    return Invalid(f"`{where}{name}` must be {allowed}.", param=f"{where}{name}", code="invalid_type")


def _environ(value: Any, where: str) -> dict[str, str]:
    """Return the variables of a container; an error names none of them."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_ITEMS:
        raise _wrong(where, "env", f"an object of up to {MAX_ITEMS} variables")
    if any(name.strip().startswith("-") or not isinstance(text, str) for name, text in value.items()):
        raise _wrong(where, "env", "an object of variables with texts; `ports` opens ports")
    return dict(value)


def _ports(value: Any, where: str) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_ITEMS:
        raise _wrong(where, "ports", "a list of ports")
    if not all(
        isinstance(port, int) and not isinstance(port, bool) and 1 <= port <= 65_535 for port in value
    ):
        raise _wrong(where, "ports", "a list of whole numbers from 1 to 65535")
    return tuple(dict.fromkeys(value))


def _script(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MAX_SCRIPT or "\0" in value:
        raise _wrong(where, "onstart", f"a script of up to {MAX_SCRIPT} characters")
    return value


def _command(value: Any, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if (
        not isinstance(value, list)
        or len(value) > MAX_ITEMS
        or not all(isinstance(one, str) for one in value)
    ):
        raise _wrong(where, "command", f"a list of up to {MAX_ITEMS} texts")
    return tuple(value)
