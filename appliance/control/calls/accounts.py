"""The calls about accounts; `account_service` carries them out where ACCOUNTS is on."""

from typing import TYPE_CHECKING, cast

from appliance.base.errors import Conflict
from appliance.control.calls.group import AnyContext, CallGroup
from appliance.control.v1 import control_pb2 as pb

if TYPE_CHECKING:  # without ACCOUNTS nothing of accounts is loaded
    from appliance.control.account_service import AccountService


class AccountCalls(CallGroup):
    """Users, API keys, sessions, credits, spending, prices. A change that has begun is finished."""

    async def ListUsers(self, request: pb.ListUsersRequest, context: AnyContext) -> pb.ListUsersResponse:
        """Return a page of users."""
        return await self._service().ListUsers(request)

    async def CreateUser(self, request: pb.CreateUserRequest, context: AnyContext) -> pb.CreateUserResponse:
        """Create a user."""
        return await self._run_uninterrupted(self._service().CreateUser(request))

    async def SetUser(self, request: pb.SetUserRequest, context: AnyContext) -> pb.SetUserResponse:
        """Change a user."""
        return await self._run_uninterrupted(self._service().SetUser(request))

    async def DeleteUser(self, request: pb.DeleteUserRequest, context: AnyContext) -> pb.DeleteUserResponse:
        """Delete a user."""
        return await self._run_uninterrupted(self._service().DeleteUser(request))

    async def ListApiKeys(
        self, request: pb.ListApiKeysRequest, context: AnyContext
    ) -> pb.ListApiKeysResponse:
        """Return a user's API keys."""
        return await self._service().ListApiKeys(request)

    async def CreateApiKey(
        self, request: pb.CreateApiKeyRequest, context: AnyContext
    ) -> pb.CreateApiKeyResponse:
        """Make an API key; its text is in this response alone."""
        return await self._run_uninterrupted(self._service().CreateApiKey(request))

    async def RevokeApiKey(
        self, request: pb.RevokeApiKeyRequest, context: AnyContext
    ) -> pb.RevokeApiKeyResponse:
        """Revoke an API key."""
        return await self._run_uninterrupted(self._service().RevokeApiKey(request))

    async def ListSessions(
        self, request: pb.ListSessionsRequest, context: AnyContext
    ) -> pb.ListSessionsResponse:
        """Return a user's sessions."""
        return await self._service().ListSessions(request)

    async def EndSessions(
        self, request: pb.EndSessionsRequest, context: AnyContext
    ) -> pb.EndSessionsResponse:
        """End one session of a user, or all of them."""
        return await self._run_uninterrupted(self._service().EndSessions(request))

    async def GrantCredits(
        self, request: pb.GrantCreditsRequest, context: AnyContext
    ) -> pb.GrantCreditsResponse:
        """Add credits, or take some away."""
        return await self._run_uninterrupted(self._service().GrantCredits(request))

    async def GetUsage(self, request: pb.GetUsageRequest, context: AnyContext) -> pb.GetUsageResponse:
        """Return what a user may use and has used."""
        return await self._service().GetUsage(request)

    async def GetSpending(
        self, request: pb.GetSpendingRequest, context: AnyContext
    ) -> pb.GetSpendingResponse:
        """Return the limits of each window, and what a user has spent in it."""
        return await self._service().GetSpending(request)

    async def ResetSpending(
        self, request: pb.ResetSpendingRequest, context: AnyContext
    ) -> pb.ResetSpendingResponse:
        """Let windows of a user begin anew."""
        return await self._run_uninterrupted(self._service().ResetSpending(request))

    async def GetMoney(self, request: pb.GetMoneyRequest, context: AnyContext) -> pb.GetMoneyResponse:
        """Return the sums of the ledger."""
        return await self._service().GetMoney(request)

    async def ListPrices(self, request: pb.ListPricesRequest, context: AnyContext) -> pb.ListPricesResponse:
        """Return the prices that are in force."""
        return await self._service().ListPrices(request)

    async def SetPrices(self, request: pb.SetPricesRequest, context: AnyContext) -> pb.SetPricesResponse:
        """Add versions of prices."""
        return await self._run_uninterrupted(self._service().SetPrices(request))

    def _service(self) -> "AccountService":
        if self._parts.accounts is None:
            raise Conflict(
                "Accounts are not available on this appliance: start it with ACCOUNTS=1.", code="no_accounts"
            )
        return cast("AccountService", self._parts.accounts)
