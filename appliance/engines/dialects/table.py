"""Kind → dialect: the engines that can be spoken to. A new member is one file and one row. Detection tries them in this order."""

from appliance.engines.dialects.contract import Dialect
from appliance.engines.dialects.llamacpp import LlamaCpp
from appliance.engines.dialects.openai import OpenAi
from appliance.engines.dialects.sglang import Sglang
from appliance.engines.dialects.vllm import Vllm

DIALECTS: dict[str, Dialect] = {dialect.kind: dialect for dialect in (LlamaCpp(), Vllm(), Sglang(), OpenAi())}
AUTO = "auto"
