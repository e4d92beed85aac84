"""`python -m app.core.status_server --port 8001`, from RouterModelCustom's guide (docs/compatibility.md)."""

import sys

from appliance.status_server import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
