"""The commands beside those about instances: the proxy, load, logging in, credits, events."""

import sys
from pathlib import Path
from typing import Any, Final

from appliance.admin.flags import WrongUsage
from appliance.admin.passwords import read_password
from appliance.base import jsons
from appliance.gpuproxy_client.api import ApiClient, ApiFailure
from appliance.gpuproxy_client.credentials import KeptLogin
from appliance.gpuproxy_client.output import ClientOutput, number_of, price, rows_of, text_of

PROTOCOLS: Final = ("http", "https", "mcp", "openinference")
PROVIDERS: Final = ("vast.ai", "io.net")
EVENT_WAIT_S: Final = 25
MAX_BODY: Final = 16 * 1024 * 1024


class ClientCommands:
    """Commands.

    Args:
        api: The appliance.
        output: Where they print.
        login: The login that is kept.
    """

    def __init__(self, api: ApiClient, output: ClientOutput, login: KeptLogin) -> None:
        self._api, self._output, self._login = api, output, login

    # ---- proxy

    def proxy(self, protocol: str, url: str, *, method: str = "", body: str = "", timeout: str = "") -> int:
        """Send a request through the appliance, and print what the target answers.

        Args:
            protocol: Of PROTOCOLS.
            url: The target.
            method: Of HTTP; "" = POST with a body, else GET.
            body: A text, `@FILE`, or `-` for standard input; JSON is sent as JSON.
            timeout: Seconds; "" = the appliance's.
        """
        if protocol not in PROTOCOLS:
            raise WrongUsage(f"There is no protocol {protocol[:20]!r}: use {', '.join(PROTOCOLS)}")
        order: dict[str, Any] = {"protocol": protocol, "target_url": url}
        if body:
            order["body"] = _read_body(body)
        if method or protocol in ("http", "https"):
            order["method"] = (method or ("POST" if body else "GET")).upper()
        if timeout:
            if not timeout.isascii() or not timeout.isdecimal():
                raise WrongUsage(f"-timeout {timeout[:20]}: use whole seconds")
            order["timeout"] = int(timeout)
        found = self._api.call("POST", "/gpu/proxy", order)
        error = text_of(found.get("error"))
        if self._output.object(found):
            return 1 if error else 0
        if error:
            raise ApiFailure(error)
        shown = found.get("body")
        text = shown if isinstance(shown, str) else jsons.dumps_pretty(shown)
        self._output.lines(f"Status: {text_of(found.get('status_code'))}", text)
        return 0

    # ---- load balancing

    def load(self, what: str) -> None:
        """Print the load of the backends, and how many instances each market offers."""
        if what not in ("all", "server", "provider"):
            raise WrongUsage(f"There is no load of {what[:20]!r}: use all, server or provider")
        shown: dict[str, Any] = {}
        if what != "provider":
            shown["server"] = self._server_load()
        if what == "all" and not self._output.is_json:
            self._output.lines("")
        if what != "server":
            shown["provider"] = self._provider_load(is_alone=what == "provider")
        self._output.object(shown)

    def _server_load(self) -> dict[str, Any]:
        body = self._api.call("GET", "/loadbalancer/loads")
        if self._output.is_json:
            return body
        loads = body.get("loads")
        found = [one for one in loads.values() if isinstance(one, dict)] if isinstance(loads, dict) else []
        self._output.lines(f"Strategy: {text_of(body.get('strategy'))}", "")
        self._output.table(
            ["INSTANCE", "PROVIDER", "ACTIVE", "TOTAL", "AVG RT", "WEIGHT"],
            (
                [
                    row.get("instance_id"),
                    row.get("provider"),
                    row.get("active_connections"),
                    row.get("total_connections"),
                    f"{number_of(row.get('avg_response_time')) * 1000:.0f}ms",
                    f"{number_of(row.get('weight')):.2f}",
                ]
                for row in found
            ),
        )
        return body

    def _provider_load(self, *, is_alone: bool) -> dict[str, Any]:
        """Print how many instances each market offers; one that does not answer does not hide the other."""
        counts: dict[str, Any] = {}
        failure: ApiFailure | None = None
        for provider in PROVIDERS:
            try:
                body = self._api.call("GET", "/gpu/instances", query={"provider": provider})
            except ApiFailure as error:
                counts[provider], failure = error.message, error
            else:
                counts[provider] = len(rows_of(body, "instances"))
        if failure is not None and is_alone and not any(isinstance(one, int) for one in counts.values()):
            raise failure
        if not self._output.is_json:
            self._output.lines(
                *(
                    f"{name}: {count} available instances" if isinstance(count, int) else f"{name}: {count}"
                    for name, count in counts.items()
                )
            )
        return counts

    def strategy(self, name: str) -> None:
        """Print how a backend is chosen, or change it."""
        if name:
            body = self._api.call("PUT", "/loadbalancer/strategy", {"strategy": name})
        else:
            body = self._api.call("GET", "/loadbalancer/strategy")
        if self._output.object(body):
            return
        message = text_of(body.get("message")) if name else ""
        strategy = text_of(body.get("strategy"))
        self._output.lines(f"{message}: {strategy}" if message else f"Current strategy: {strategy}")

    # ---- account

    def log_in(self, email: str, word: str) -> None:
        """Log in, and keep the session for the next commands."""
        password = read_password(word or "-", is_new=False)
        api = ApiClient(self._api.address, trace=self._api.trace)
        body = api.call("POST", "/auth/login", {"email": email, "password": password})
        self._login.keep(body.get("tokens"))
        user = body.get("user")
        if not self._output.object({"user": user}):
            self._output.lines(f"Logged in as {email}; kept in {self._login.path}")

    def log_out(self) -> None:
        """End the session that is kept."""
        found = self._login.read()
        if not found:
            raise ApiFailure("There is no login to end.")
        api = ApiClient(self._api.address, trace=self._api.trace)
        try:
            api.call("POST", "/auth/logout", {"refresh_token": found.get("refresh_token", "")})
        except ApiFailure as failure:
            if failure.status not in (400, 401):
                raise
        self._login.forget()
        if not self._output.object({"message": "Logged out"}):
            self._output.lines("Logged out")

    def balance(self) -> None:
        """Print one's credits."""
        body = self._api.call("GET", "/billing/credits")
        if self._output.object(body):
            return
        self._output.table(
            ["CREDITS", "DOLLARS"],
            [
                ["remaining", price(body.get("credits_remaining"))],
                ["total", price(body.get("credits_total"))],
                ["held", price(body.get("credits_held"))],
                ["overage", f"{price(body.get('credits_overage'))} of {price(body.get('credits_cap'))}"],
                ["owed", price(body.get("credits_owed"))],
            ],
        )

    def events(self, after: str, *, is_once: bool) -> None:
        """Print events as they happen, until Ctrl-C."""
        if after and not (after.isascii() and after.isdecimal()):
            raise WrongUsage(f"-after {after[:20]}: use the number of an event")
        wait_s = 0 if is_once else EVENT_WAIT_S
        while True:
            body = self._api.call("GET", "/polling", query={"after": after, "wait": str(wait_s)}, base="")
            gap = body.get("gap")
            if isinstance(gap, dict) and not self._output.is_json:
                print(f"events {gap.get('from')} to {gap.get('to')} are no longer kept", file=sys.stderr)
            for event in rows_of(body, "events"):
                if not self._output.object(event):
                    data = jsons.dumps_text(event.get("data"))
                    at, topic = text_of(event.get("at")), text_of(event.get("topic"))
                    self._output.lines(f"{event.get('seq')}  {at}  {topic}  {data[:2000]}")
            following = body.get("next")
            if not isinstance(following, int) or isinstance(following, bool):
                raise ApiFailure("The response has no number of the next event.")
            if is_once and (after or not following):
                return
            if is_once:
                after = str(max(0, following - 100))
                continue
            after = str(following)


def _read_body(text: str) -> Any:
    """Return a body: JSON where it is JSON, else the text.

    Raises:
        WrongUsage: The file cannot be read.
    """
    if text == "-":
        text = sys.stdin.read(MAX_BODY)
    elif text.startswith("@"):
        try:
            text = Path(text[1:]).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise WrongUsage(
                f"-body {text[:100]}: {getattr(error, 'strerror', None) or 'it is no text'}"
            ) from None
    try:
        return jsons.loads(text)
    except (jsons.InvalidJson, RecursionError):
        return text
