"""The running appliance keeps to its own description: generated requests get no 500 and no undeclared answer."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import CheckContext
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from appliance.front.openapi.document import build_document
from appliance.front.openapi.shapes import SSE
from appliance.front.routes_text import main_sections
from tests.journeys.running import spawning

DOCUMENT = build_document(main_sections(has_accounts=False), version="1")
EXAMPLES = 4  # for each operation


def _is_endless(operation: dict) -> bool:
    return list(operation["responses"].get("200", {}).get("content", ())) == [SSE]


for item in DOCUMENT["paths"].values():  # feeds do not end
    for method in [name for name, operation in item.items() if _is_endless(operation)]:
        del item[method]
log = DOCUMENT["paths"]["/v1/models/{alias}/logs"]["get"]
log["parameters"] = [one for one in log["parameters"] if one["name"] != "follow"]
schema = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def appliance_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An appliance in a process of its own for all operations."""
    with spawning(tmp_path_factory.mktemp("appliance")) as begin:
        yield begin().base_url


def no_500(context: CheckContext, response: schemathesis.Response, case: schemathesis.Case) -> None:
    """Fail for what is a fault of ours; 501 to 504 are told to the caller."""
    if response.status_code == 500:
        raise AssertionError(response.text)


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_an_operation_keeps_to_its_description(case: schemathesis.Case, appliance_url: str) -> None:
    response = case.call(base_url=appliance_url, timeout=20)
    case.validate_response(
        response,
        checks=[no_500, status_code_conformance, content_type_conformance, response_schema_conformance],
    )
