"""The program against a recorded server."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.gpuproxy_client.program import main
from tests.gpuproxy_client.recorded import RecordedServer, recorded


class ClientShell:
    """Runs the program in this process; keeps what it wrote."""

    def __init__(
        self,
        server: RecordedServer,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        folder: Path,
    ) -> None:
        self.server, self.folder = server, folder
        self._capsys, self._monkeypatch = capsys, monkeypatch
        self.out = self.err = ""
        self.is_terminal = False

    def run(self, *words: str, stdin: str = "", key: str = "apk_test") -> int:
        self._monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        self._monkeypatch.setenv("GPUPROXY_API_KEY", key)
        self._capsys.readouterr()
        self._monkeypatch.setattr(sys.stdout, "isatty", lambda: self.is_terminal)
        code = main(["-api", self.server.url, *words])
        self.out, self.err = self._capsys.readouterr()
        return code

    def done(self, *words: str, stdin: str = "", key: str = "apk_test") -> str:
        assert self.run(*words, stdin=stdin, key=key) == 0, self.err
        return self.out


@pytest.fixture
def shell(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[ClientShell]:
    for name in ("GPUPROXY_API_KEY", "GPUPROXY_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with recorded() as server:
        yield ClientShell(server, capsys, monkeypatch, tmp_path)
