"""`python run.py`, from RouterModelCustom's guide: serve the models of config.json (docs/compatibility.md).

It listens where `api` of config.json says, else on port 8000 of this machine alone. `appliance serve` is the
same without these defaults.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if not (HERE / "appliance/control/v1/control_pb2.py").exists():
    # A clone lacks generated code: the installed package has it.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

try:
    from appliance.__main__ import main
    from appliance.settings import effective_environ
except ImportError as exc:
    sys.exit(f"error: {exc}. Install the packages first: pip install -r requirements.txt")

if __name__ == "__main__":
    if "CONFIG_PATH" not in os.environ and Path("config.json").exists():
        os.environ["CONFIG_PATH"] = "config.json"
    if not {"PROXY_PORT", "PORT"} & {
        name for name, value in effective_environ(os.environ)[0].items() if value
    }:
        os.environ["PROXY_PORT"] = "8000"
    sys.exit(main(["serve", *sys.argv[1:]]))
