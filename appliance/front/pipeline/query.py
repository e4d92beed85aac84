"""The query of a request as a handler reads it: named values, each checked."""

from collections.abc import Collection
from urllib.parse import parse_qsl

from appliance.base.errors import Invalid

MAX_FIELDS = 64
TRUE, FALSE = ("1", "true", "yes"), ("", "0", "false", "no")


class Query:
    """The values of a query by name.

    Args:
        text: The raw query.
        allowed: The names that it may have; a misspelt filter must not count as none.

    Raises:
        Invalid: It has another name, or one of them twice.
    """

    def __init__(self, text: str, *, allowed: Collection[str]) -> None:
        try:
            fields = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="replace")
        except ValueError:
            raise Invalid(f"The query has more than {MAX_FIELDS} fields.", code="invalid_query") from None
        self._values: dict[str, str] = {}
        for name, value in fields:
            if name not in allowed:
                raise Invalid(
                    f"There is no query parameter {name[:40]!r} here; there are {', '.join(allowed)}.",
                    param=name[:40],
                    code="unknown_parameter",
                )
            if name in self._values:
                raise Invalid(f"`{name}` is given twice.", param=name, code="invalid_query")
            self._values[name] = value

    def text(self, name: str) -> str:
        """Return a text; "" = it is not given."""
        return self._values.get(name, "")

    def number(self, name: str, *, default: int, low: int, high: int) -> int:
        """Return a whole number.

        Raises:
            Invalid: It is none from `low` to `high`.
        """
        text = self.text(name)
        if not text:
            return default
        if text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high:
            return int(text)
        raise Invalid(
            f"`{name}` must be a whole number from {low} to {high}, not {text[:40]!r}.",
            param=name,
            code="invalid_value",
        )

    def flag(self, name: str) -> bool:
        """Return a yes or no; not given means no, given without a value yes.

        Raises:
            Invalid: It is neither.
        """
        text = self._values.get(name, "0").lower() or "1"
        if text in TRUE:
            return True
        if text in FALSE:
            return False
        raise Invalid(f"`{name}` must be 1 or 0, not {text[:40]!r}.", param=name, code="invalid_value")
