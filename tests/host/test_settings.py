"""The host's variables: what is refused, and the text that says so."""

import pytest

from appliance.base.settings import InvalidSettings
from appliance.host.settings import HostSettings


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"STATE_DIR": "relative"}, "The path must be absolute"),
        (
            {"WORKER_ENV": "LANG, novita_api_key"},
            "A worker never gets novita_api_key, a secret of the appliance",
        ),
        ({"GPU_SPOOF_UUID": "GPU-1"}, "Not a GPU UUID"),
        ({"GPU_SPOOF_PCI_BUS_ID": "0000:1"}, "Not a PCI bus id"),
        ({"GPU_SPOOF_NAME": "a,b"}, "1 to 64 printable ASCII characters"),
        ({"GPU_SPOOF_DRIVER": "new"}, "Not a driver version; write it like 535.00"),
        ({"WORKER": "kuzco", "WORKER_COMMAND": "x", "CODE": "c"}, "both set; unset one of them"),
        ({"WORKER": "kuzco"}, "CODE: WORKER=kuzco needs the registration code"),
        ({"KEEPALIVE": "perhaps"}, "allowed: 0 or 1. Expected 1 or 0 (also true/false, yes/no, on/off)"),
        ({"GPU_SIM_COUNT": "17"}, "a whole number from 1 to 16"),
    ],
)
def test_invalid_values_are_refused_with_what_is_allowed(environ: dict[str, str], text: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        HostSettings.from_env(environ)
    assert text in str(caught.value)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("text", "mib"), [("24576", 24576), ("24576 MiB", 24576), ("24 GiB", 24576), ("1gb", 1024)]
)
def test_memory_size_has_several_forms(text: str, mib: int) -> None:
    assert HostSettings.from_env({"GPU_SPOOF_MEMORY_TOTAL": text}).gpu_spoof_memory_total == mib
