"""The addresses of accounts keep to their description: generated requests get no 500 and no undeclared answer."""

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

from appliance.front.openapi.document import build_document
from appliance.front.routes_text import main_sections
from tests.journeys.running import spawning
from tests.journeys.test_schemathesis import no_500

SECRET = "a-secret-of-tests-that-is-long-enough-0123456789-abcdefghij"
OPERATOR = "operator-key-of-tests"
USER = {"email": "ada@example.org", "password": "correct horse battery", "name": "Ada"}
EXAMPLES = 8  # for each operation
OTHERS = {title for title, _ in main_sections(has_accounts=False)}
DOCUMENT = build_document(
    [one for one in main_sections(has_market=False) if one[0] not in OTHERS], version="1"
)
del DOCUMENT["paths"]["/api/v1/user"]["delete"]  # it would be the end of all others
LOGINS = [f"/api/v1/auth/{name}" for name in ("login", "refresh", "logout", "password")]
schema = schemathesis.openapi.from_dict(DOCUMENT)


@dataclass
class Served:
    """An appliance with accounts, and a user who is logged in."""

    url: str
    token: str
    user_id: str
    key_id: str
    other_id: str  # of the user whose password is set, and who is deleted

    def user_of(self, case: schemathesis.Case) -> str:
        """Return the user of an operator's address."""
        is_end = case.method.upper() == "DELETE" or case.path.endswith("/password")
        return self.other_id if is_end else self.user_id

    def headers_for(self, path: str) -> dict[str, str]:
        """Return what opens an address; public ones get nothing, or a logout would end it all."""
        if "/admin/" in path:
            return {"x-api-key": OPERATOR}
        is_public = path.rpartition("/")[2] in ("register", "login", "refresh", "logout")
        return {} if is_public else {"authorization": f"Bearer {self.token}"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with spawning(tmp_path_factory.mktemp("appliance")) as begin:
        url = begin(
            ACCOUNTS="1",
            JWT_SECRET=SECRET,
            REGISTRATION="open",
            OPERATOR_API_KEYS=OPERATOR,
            RATE_LIMIT_REQUESTS_PER_MINUTE="0",
        ).base_url
        httpx.post(f"{url}/api/v1/auth/register", json=USER).raise_for_status()
        other = httpx.post(f"{url}/api/v1/auth/register", json=USER | {"email": "other@example.org"})
        login = {name: USER[name] for name in ("email", "password")}
        answer = httpx.post(f"{url}/api/v1/auth/login", json=login).raise_for_status()
        token, user_id = answer.json()["tokens"]["access_token"], answer.json()["user"]["id"]
        headers = {"authorization": f"Bearer {token}"}
        key = httpx.post(f"{url}/api/v1/auth/apikey", json={"name": "k"}, headers=headers)
        yield Served(url, token, user_id, key.raise_for_status().json()["id"], other.json()["user"]["id"])


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_an_operation_keeps_to_its_description(case: schemathesis.Case, served: Served) -> None:
    if "/admin/users/" in case.path:
        case.path_parameters = {"id": served.user_of(case)}
    elif "/apikey/" in case.path:
        case.path_parameters = {"id": served.key_id}
    response = case.call(base_url=served.url, headers=served.headers_for(case.path), timeout=20)
    assert response.status_code != 401 or case.path in LOGINS, response.text
    case.validate_response(
        response,
        checks=[no_500, status_code_conformance, content_type_conformance, response_schema_conformance],
    )
