"""Kind → dialect. A new kind of engine needs one module and one row here."""

from appliance.engines.dialects.contract import Dialect
from appliance.engines.dialects.llamacpp import LlamaCpp
from appliance.engines.dialects.openai import OpenAi
from appliance.engines.dialects.sglang import Sglang
from appliance.engines.dialects.vllm import Vllm

AUTO = "auto"  # a backend's kind until it is detected; dialects are tried in the order of the table
DIALECTS: dict[str, Dialect] = {dialect.kind: dialect for dialect in (LlamaCpp(), Vllm(), Sglang(), OpenAi())}
