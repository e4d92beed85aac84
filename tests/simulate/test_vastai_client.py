"""vast.ai's own Python package against its stand-in.

The package brings some 25 others that nothing here uses (PDF, QR codes, XML), so it is not in the locked
environment: `EXAMPLE_CLIENTS` names a folder with `vastai/bin/python`, an environment that has vastai.
"""

import asyncio
import json
import os
from pathlib import Path

import pytest

from appliance.simulate.twin import Twin
from tests.simulate.calls import Calls

PROGRAM = """
import json, sys
import requests
from vastai.api import billing, instances, offers
from vastai.api.client import VastClient

client = VastClient("vastai-simulated-key", sys.argv[1], retry=3)
found = offers.search_offers(client, {"gpu_ram": {"gte": 24000}, "gpu_name": {"in": ["RTX 4090", "L40S"]}},
                             order=[["dph_total", "asc"]])
newer = offers.search_offers_new(client, {"gpu_ram": {"gte": 24000}, "gpu_name": {"in": ["RTX 4090", "L40S"]}},
                                 order=[["dph_total", "asc"]])
created = [
    instances.create_instance(client, offer["id"], image="image", disk=20, label=f"apl-{number}",
                              env={"-p 8000:8000": "1", "NAME": "value"}, args=["--model", "m"], runtype="args")
    for number, offer in enumerate(found[:2])
]
advance = lambda seconds: requests.post(sys.argv[1] + "/_clock", json={"advance_s": seconds}, timeout=5)
advance(60)
listed = instances.show_instances(client)
one = instances.show_instance(client, created[0]["new_contract"])
logs = instances.logs(client, created[0]["new_contract"])
instances.label_instance(client, created[0]["new_contract"], "apl-new")
instances.stop_instance(client, created[0]["new_contract"])
stopped = instances.show_instance(client, created[0]["new_contract"])
instances.start_instance(client, created[0]["new_contract"])
user = billing.show_user(client)
requests.post(sys.argv[1] + "/_fault", json={"service": "vast", "kind": "rate_limited_text", "times": 2}, timeout=5)
after_429 = len(instances.show_instances(client))
ended = [instances.destroy_instance(client, [each["new_contract"] for each in created])]
print(json.dumps({
    "found": [row["gpu_name"] for row in found], "same": found == newer,
    "listed": [[row["label"], row["actual_status"], row["extra_env"]] for row in listed],
    "port": one["ports"]["8000/tcp"][0]["HostPort"], "logs": logs, "label": stopped["label"],
    "stopped": stopped["actual_status"], "has_key": "api_key" in user, "after_429": after_429, "ended": ended,
    "left": len(instances.show_instances(client)),
    "none": instances.show_instance(client, created[0]["new_contract"]),
}))
"""


@pytest.fixture
def vastai() -> Path:
    path = Path(os.environ.get("EXAMPLE_CLIENTS") or "/nonexistent") / "vastai" / "bin" / "python"
    if not path.exists():
        pytest.skip("EXAMPLE_CLIENTS names no folder with vastai/bin/python")
    return path


async def test_the_official_client_rents_and_destroys(call: Calls, twin: Twin, vastai: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        vastai, "-c", PROGRAM, twin.origins["vast"], stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    seen = json.loads(out)
    assert seen["found"]
    assert set(seen["found"]) == {"RTX 4090", "L40S"}
    assert seen["same"] is True
    assert seen["listed"] == [[f"apl-{number}", "running", {"NAME": "value"}] for number in range(2)]
    assert seen["port"].isdecimal()
    assert "running (simulated)" in seen["logs"]
    assert (seen["label"], seen["stopped"], seen["has_key"]) == ("apl-new", "stopped", False)
    assert (seen["after_429"], seen["ended"], seen["left"]) == (2, [{"success": True}], 0)
    assert seen["none"] is None
    assert twin.truth()["live"] == 0
