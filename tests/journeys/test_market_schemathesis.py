"""The addresses of renting keep to their description: generated requests get no 500 and no undeclared answer."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from appliance.front.market.groups import SECTIONS
from appliance.front.openapi.document import build_document
from appliance.front.routes_text import main_sections
from tests.journeys.running import spawning
from tests.journeys.test_accounts_schemathesis import OPERATOR, SECRET, USER
from tests.journeys.test_schemathesis import no_500

EXAMPLES = 10  # for each operation
TITLES = {title for title, _ in SECTIONS if "proxy" not in title}
DOCUMENT = build_document([one for one in main_sections() if one[0] in TITLES], version="1")
schema = schemathesis.openapi.from_dict(DOCUMENT)


@dataclass
class RentingServed:
    """An appliance that rents at stand-ins, and a user with one rental."""

    url: str
    token: str
    contract_id: str
    offer_ids: list[str]


@pytest.fixture(scope="module")
def renting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RentingServed]:
    command = (sys.executable, "-m", "appliance", "simulate", "--vast", "--ionet", "--json")
    twin = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert twin.stdout is not None
    try:
        environ = json.loads(twin.stdout.readline())["environ"]
        with spawning(tmp_path_factory.mktemp("appliance")) as begin:
            url = begin(
                ACCOUNTS="1",
                MARKET="1",
                UNPRICED="free",
                JWT_SECRET=SECRET,
                REGISTRATION="open",
                OPERATOR_API_KEYS=OPERATOR,
                RATE_LIMIT_REQUESTS_PER_MINUTE="0",
                RENT_MAX_PER_USER="8",
                RENT_MAX_LAUNCHES_PER_H="100",
                GPU_API_TIMEOUT="5s",
                **environ,
            ).base_url
            with httpx.Client(base_url=f"{url}/api/v1", timeout=20) as http:
                yield _with_rental(http, url)
    finally:
        twin.terminate()
        twin.wait(20)


def _with_rental(http: httpx.Client, url: str) -> RentingServed:
    http.post("/auth/register", json=USER).raise_for_status()
    login = http.post("/auth/login", json={name: USER[name] for name in ("email", "password")}).json()
    path = f"/admin/users/{login['user']['id']}/grant"
    http.post(path, json={"amount": 1000}, headers={"x-api-key": OPERATOR}).raise_for_status()
    token = login["tokens"]["access_token"]
    headers = {"authorization": f"Bearer {token}"}
    found = (
        http.get("/gpu/instances?provider=vast.ai", headers=headers).raise_for_status().json()["instances"]
    )
    made = http.post(f"/gpu/instances/vast.ai/{found[0]['id']}", headers=headers).raise_for_status()
    return RentingServed(url, token, made.json()["contract_id"], [offer["id"] for offer in found[1:]])


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_renting_keeps_to_its_description(case: schemathesis.Case, renting: RentingServed) -> None:
    if "{provider}" in case.path:
        is_create = case.method.upper() == "POST" and case.path.endswith("{id}")
        name = renting.offer_ids.pop() if is_create and renting.offer_ids else renting.contract_id
        case.path_parameters = {"provider": "vast.ai", "id": name}
    is_operators = "/admin/" in case.path
    headers = {"x-api-key": OPERATOR} if is_operators else {"authorization": f"Bearer {renting.token}"}
    response = case.call(base_url=renting.url, headers=headers, timeout=30)
    assert response.status_code != 401, response.text
    case.validate_response(
        response,
        checks=[no_500, status_code_conformance, content_type_conformance, response_schema_conformance],
    )
