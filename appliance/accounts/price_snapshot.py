"""The prices of the database on disk, for a restart while the database is down: a file beside the snapshot.

Its last line is an HMAC by a key derived from JWT_SECRET, as that of the snapshot of keys.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Final

from appliance.accounts.prices import Price
from appliance.base import jsons
from appliance.base.files import write_atomic
from appliance.base.logs import get_logger

log = get_logger("accounts")
FILE_NAME: Final = "prices-snapshot"
FORMAT: Final = 1


class PriceSnapshot:
    """Writes and reads the file.

    Args:
        path: The file, in STATE_DIR.
        secret: JWT_SECRET.
    """

    def __init__(self, path: Path, secret: str) -> None:
        self._path = path
        self._key = hmac.digest(secret.encode(), b"appliance snapshot of prices", hashlib.sha256)

    def write(self, prices: Sequence[Price]) -> None:
        """Write the file (blocking). One that cannot be written is logged, and the old one stays."""
        body = jsons.dumps({"format": FORMAT, "prices": [astuple(price) for price in prices]})
        try:
            write_atomic(self._path, body + b"\n" + self._mac(body), mode=0o600, is_synced=False)
        except OSError as error:
            log.warning("prices_unwritten", error=repr(error))

    def load(self) -> list[Price]:
        """Return the prices of the file (blocking); [] = none may be used, and the log says why."""
        try:
            body, _, mac = self._path.read_bytes().rpartition(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            log.warning("prices_unread", error=repr(error))
            return []
        if not hmac.compare_digest(self._mac(body), mac):
            log.warning("prices_unread", reason="it was changed, or written with another JWT_SECRET")
            return []
        found = jsons.loads(body)  # it is ours: the HMAC says so
        if found["format"] != FORMAT:
            log.warning("prices_unread", reason="another version of the appliance wrote it")
            return []
        return [Price(*row) for row in found["prices"]]

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, hashlib.sha256).hex().encode()
