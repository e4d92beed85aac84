"""Kind → dialect: the engines that can be spoken to. A new member is one file and one row. Detection tries them in this order."""

from appliance.engines.backends.contract import Dialect
from appliance.engines.backends.llamacpp import LlamaCpp
from appliance.engines.backends.openai import OpenAi
from appliance.engines.backends.sglang import Sglang
from appliance.engines.backends.vllm import Vllm

DIALECTS: dict[str, Dialect] = {dialect.kind: dialect for dialect in (LlamaCpp(), Vllm(), Sglang(), OpenAi())}
AUTO = "auto"
