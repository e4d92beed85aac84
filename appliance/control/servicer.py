"""The service `appliance.control.v1.Control`, composed of its groups of calls.

A call reads its request, calls the part that HTTP uses too, and renders the response. The interceptor turns
an ApplianceError into a status code.
"""

from appliance.control.calls.accounts import AccountCalls
from appliance.control.calls.backends import BackendCalls
from appliance.control.calls.chat import ChatCalls
from appliance.control.calls.jobs import JobCalls
from appliance.control.calls.logs import LogCalls
from appliance.control.calls.lora import LoraCalls
from appliance.control.calls.models import ModelCalls
from appliance.control.calls.receipts import ReceiptCalls
from appliance.control.calls.settings import SettingsCalls
from appliance.control.calls.status import StatusCalls
from appliance.control.calls.worker import WorkerCalls


class Servicer(
    StatusCalls,
    SettingsCalls,
    WorkerCalls,
    LogCalls,
    BackendCalls,
    ReceiptCalls,
    ChatCalls,
    ModelCalls,
    JobCalls,
    LoraCalls,
    AccountCalls,
):
    """All groups of calls."""
