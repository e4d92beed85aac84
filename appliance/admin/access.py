"""How a command reaches accounts: on the database itself, or over an appliance's control API.

1. an address is given (--address, CONTROL_ADDRESS)   → that appliance
2. PostgreSQL                                         → the database; servers hear of changes
3. SQLite that no process uses                        → the database
4. SQLite that a process uses                         → the appliance at the address of the settings
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack, ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from appliance.base.errors import ApplianceError, Unavailable
from appliance.cli.client import (
    FAILED,
    REFUSED,
    UNREACHABLE,
    CallFailed,
    ControlClient,
    ServerAddress,
    default_address,
    read_token,
)

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from appliance.admin.store import StoreSettings
    from appliance.control.account_service import AccountService


class AccountAccess(Protocol):
    """Makes the calls of control.proto about accounts."""

    def call(self, name: str, request: "Message") -> Any:
        """Make the call `name`.

        Raises:
            CallFailed: With the exit code.
        """


class RemoteAccess:
    """A running appliance."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client

    def call(self, name: str, request: "Message") -> Any:
        """Make the call over the control API; see AccountAccess."""
        try:
            return self._client.call(getattr(self._client.stub, name), request, timeout_s=60)
        except CallFailed as failure:
            if failure.exit_code == REFUSED:  # the token: these programs know three codes
                raise CallFailed(failure.message, FAILED) from None
            raise


class LocalAccess:
    """The database itself, for as long as this is entered."""

    def __init__(self, settings: "StoreSettings") -> None:
        self._settings = settings
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._service: AccountService | None = None

    def __enter__(self) -> Self:
        from appliance.admin.store import opened_service

        try:
            self._service = self._runner.run(self._stack.enter_async_context(opened_service(self._settings)))
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._runner.run(self._stack.aclose())
        finally:
            self._runner.close()

    def call(self, name: str, request: "Message") -> Any:
        """Make the call on the database; see AccountAccess."""
        from appliance.storage.database import StoreUnavailable

        try:
            return self._runner.run(getattr(self._service, name)(request))
        except StoreUnavailable as error:
            raise CallFailed(f"The database cannot be used: {error.reason}.", UNREACHABLE) from None
        except ApplianceError as error:  # Unavailable: Redis, where it alone keeps the sessions
            code = UNREACHABLE if isinstance(error, Unavailable) else FAILED
            raise CallFailed(error.message, code) from None


def open_access(
    stack: ExitStack, settings: "StoreSettings", environ: Mapping[str, str], address: str = ""
) -> AccountAccess:
    """Open the way that there is; the stack closes it.

    Args:
        stack: Of the command.
        settings: Of the database and the control API.
        environ: Has CONTROL_ADDRESS, CONTROL_TOKEN …
        address: Of an appliance; "" = none was given.

    Raises:
        CallFailed: Neither the database nor an appliance can be used.
    """
    from appliance.storage.database import StoreHeld, StoreRefused, StoreUnavailable

    if address or environ.get("CONTROL_ADDRESS"):  # 1
        server = ServerAddress(address or environ["CONTROL_ADDRESS"], _token(settings, environ))
        return RemoteAccess(stack.enter_context(ControlClient(server)))
    try:
        return stack.enter_context(LocalAccess(settings))  # 2, 3
    except StoreHeld:  # 4
        return _holder(stack, settings, environ)
    except StoreRefused as error:
        raise CallFailed(str(error)) from None
    except StoreUnavailable as error:
        raise CallFailed(f"The database cannot be used: {error.reason}.", UNREACHABLE) from None


def _holder(stack: ExitStack, settings: "StoreSettings", environ: Mapping[str, str]) -> AccountAccess:
    """Return the appliance that holds SQLite's file.

    Raises:
        CallFailed: It does not answer.
    """
    from appliance.control.v1 import control_pb2 as pb

    path = settings.storage.sqlite_path(settings.state_dir)
    address = default_address(
        {
            **environ,
            "CONTROL_PORT": str(settings.control.control_port),
            "CONTROL_SOCKET": str(settings.control.control_socket or ""),
        }
    )
    server = ServerAddress(address, _token(settings, environ))
    access = RemoteAccess(stack.enter_context(ControlClient(server)))
    try:
        access.call("ListUsers", pb.ListUsersRequest(limit=1))
    except CallFailed as failure:
        remedy = (
            f"Another process uses the database {path}, and the control API of the appliance at {address} "
            f"cannot be used: {failure.message} Give its address and token (--address, CONTROL_TOKEN), stop "
            "the process, or use PostgreSQL (DB_TYPE=postgres), which several processes can use."
        )
        raise CallFailed(remedy, failure.exit_code) from None
    return access


def _token(settings: "StoreSettings", environ: Mapping[str, str]) -> str:
    return settings.control.control_token.get_secret_value() or read_token(environ)
