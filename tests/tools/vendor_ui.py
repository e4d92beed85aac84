"""Put the libraries of the web UI into the package: `python tests/tools/vendor_ui.py FOLDER`.

FOLDER holds the unpacked packages of npm (`npm pack` each, then unpack it as FOLDER/NAME). Bare names in imports are
rewritten to files: an import map would be an inline script, which the page's policy forbids. vendor.json says what each
file was made from, with the SHA-256 before and after.
"""

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Final

TARGET: Final = Path(__file__).parents[2] / "appliance/front/ui/web/vendor"
# File of ours → (package, its file, licence)
FILES: Final = {
    "preact.js": ("preact", "dist/preact.mjs", "MIT"),
    "hooks.js": ("preact", "hooks/dist/hooks.mjs", "MIT"),
    "htm.js": ("htm", "dist/htm.module.js", "Apache-2.0"),
    "signals-core.js": ("@preact/signals-core", "dist/signals-core.module.js", "MIT"),
    "signals.js": ("@preact/signals", "dist/signals.module.js", "MIT"),
}
NAMES: Final = {
    "preact": "./preact.js",
    "preact/hooks": "./hooks.js",
    "@preact/signals-core": "./signals-core.js",
}
_IMPORT: Final = re.compile(rb'(from\s*|import\s*)(["\'])([^"\'./][^"\']*)\2')
_MAP: Final = re.compile(rb"\n?//# sourceMappingURL=\S+\n?")


def rewrite(source: bytes) -> bytes:
    """Return a module whose imports are files, without its source map.

    Raises:
        KeyError: It imports a package that is not among the files.
    """

    def to_file(found: re.Match[bytes]) -> bytes:
        return found[1] + found[2] + NAMES[found[3].decode()].encode() + found[2]

    return _MAP.sub(b"", _IMPORT.sub(to_file, source)).rstrip(b"\n") + b"\n"


def main(folder: Path) -> None:
    """Write all files, their list and their licences."""
    rows, licences = {}, []
    for name, (package, path, licence) in FILES.items():
        home = folder / package.replace("@", "").replace("/", "-")
        source = (home / path).read_bytes()
        made = rewrite(source)
        (TARGET / name).write_bytes(made)
        version = json.loads((home / "package.json").read_text())["version"]
        rows[name] = {
            "package": package,
            "version": version,
            "file": path,
            "licence": licence,
            "sha256_source": hashlib.sha256(source).hexdigest(),
            "sha256": hashlib.sha256(made).hexdigest(),
        }
        text = f"{package} {version}\n\n{(home / 'LICENSE').read_text().strip()}\n"
        if text not in licences:
            licences.append(text)
    (TARGET / "vendor.json").write_text(json.dumps(rows, indent=2) + "\n")
    (TARGET / "LICENSES.txt").write_text(f"\n{'-' * 72}\n\n".join(licences))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
