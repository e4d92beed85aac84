"""Commands to the backends: load or unload one adapter on some of them, at the same time."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from appliance.base.errors import ApplianceError
from appliance.engines.dialects.contract import LoraReply
from appliance.engines.lora.host import AdapterHost
from appliance.engines.lora.plan import Adapter, Verb
from appliance.engines.lora.replies import invalid_reply_error, refusal_error
from appliance.engines.lora.table import AdapterTable


@dataclass(frozen=True, slots=True)
class CommandOutcomes:
    """The results of one command, by backend: replies of those that carried it out, errors of the others."""

    replies: dict[str, LoraReply]
    errors: dict[str, ApplianceError]


class HostCommands:
    """Sends commands, one at a time to each backend, and notes in the table which are under way."""

    def __init__(self, table: AdapterTable) -> None:
        self._table = table

    async def send_all(
        self, verb: Verb, adapter: Adapter, hosts: Sequence[AdapterHost], more: dict[str, Any] | None = None
    ) -> CommandOutcomes:
        """Send a command to several backends at the same time.

        Args:
            more: Further fields for the engines, of an unload.
        """
        outcomes = await asyncio.gather(
            *(self.send(verb, adapter, host, more or {}, is_verified=True) for host in hosts)
        )
        by_name = {host.name: outcome for host, outcome in zip(hosts, outcomes, strict=True)}
        return CommandOutcomes(
            {name: one for name, one in by_name.items() if isinstance(one, LoraReply)},
            {name: one for name, one in by_name.items() if isinstance(one, ApplianceError)},
        )

    async def send(
        self, verb: Verb, adapter: Adapter, host: AdapterHost, more: dict[str, Any], *, is_verified: bool
    ) -> LoraReply | ApplianceError:
        """Send a command to one backend; return its reply if it carried it out, else the error.

        Args:
            is_verified: See `AdapterHost.load`.
        """
        pair = (adapter.name, host.name)
        self._table.busy.add(pair)
        try:
            async with host.lock:
                if verb == "load":
                    reply = await host.load(adapter, is_verified=is_verified)
                else:
                    reply = await host.unload(adapter, more)
        except ApplianceError as error:
            return error
        except ValueError as error:
            return invalid_reply_error(error, host.name)
        finally:
            self._table.busy.discard(pair)
        is_done = reply.is_loaded if verb == "load" else reply.is_unloaded
        return reply if is_done else refusal_error(reply, host.name, adapter.name)

    def record_loaded(self, host: AdapterHost, adapter: Adapter, reply: LoraReply) -> None:
        """Record that a backend has an adapter, or a failure if the engine should list it and does not."""
        self._table.clear_failures(adapter.name, host.name)
        try:
            host.adapters.add(adapter.name, host.describe_loaded(adapter, reply))
        except ValueError as error:
            self._table.add_failure(adapter.name, host.name, invalid_reply_error(error, host.name))
