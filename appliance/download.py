"""`appliance download`: the stand-alone downloader, by the same engine as the server's downloads.

It runs as whoever called it and trusts that person: any folder and host, unless DOWNLOAD_ALLOWED_DIRS or DOWNLOAD_ALLOWED_HOSTS are set.
Exit codes: 0 done · 1 it failed, or flaws were found · 2 it was asked for wrongly · 78 settings that cannot be used · 130, 143 stopped.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.errors import ApplianceError, Invalid
from appliance.base.logs import SECRETS
from appliance.base.proxies import Proxies
from appliance.base.settings import Problem, read_settings
from appliance.download_output import Bar, Lines, render_faults, size
from appliance.downloads.contract import DownloadRequest, DownloadResult, FileFault, redact_source
from appliance.downloads.engine import DownloadEngine
from appliance.downloads.settings import DownloadSettings

USAGE_ERROR = 2
SECRET_KEYS = ("hf_token", "ms_token", "access_key", "secret_key")
HELP = """Fetch model files. SOURCE: hf://namespace/repository[@revision][/path] or namespace/repository, s3://bucket/prefix, obs://bucket/prefix,
ms://namespace/repository, pvc://path, file:///path, https://host/file. What was begun is gone on with."""


def main(arguments: list[str]) -> int:
    """Fetch, verify or repair; give the exit code."""
    options = _parser().parse_args(arguments)
    source = options.source or options.source_option
    try:
        config = _config(options.config)
        hide_argument(options.config, config)
        settings, proxies = _settings()
        folder = _folder(options.output_dir, settings)
        if not source and not (options.verify or options.repair):
            raise Invalid("Name a SOURCE, or a folder to --verify or --repair (-o).")
        engine = DownloadEngine(settings, output_roots=None, is_trusted=True, proxies=proxies)
        return _run(_act(options, source, folder, engine, config), folder)
    except BadEnvironment as exc:
        for problem in exc.problems:
            print(f"error: {problem}", file=sys.stderr)
        return os.EX_CONFIG
    except ApplianceError as exc:
        return _failed(exc, is_json=options.json)


class BadEnvironment(Exception):
    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="appliance download", description=HELP)
    parser.add_argument("source", nargs="?", help="what to fetch")
    parser.add_argument(
        "-s", "--source", dest="source_option", metavar="SOURCE", help="the same, as system E has it"
    )
    parser.add_argument("-o", "--output-dir", help="where to; default DOWNLOAD_DIR, else ~/downloads")
    parser.add_argument(
        "-w",
        "--max-workers",
        type=int,
        default=8,
        help="files, and parts of large ones, at a time (default 8)",
    )
    parser.add_argument(
        "-c",
        "--config",
        help="a JSON object, @FILE with one, or - for standard input: hf_token, hf_endpoint, hf_revision, "
        "ms_token, ms_revision, access_key, secret_key, endpoint, revision, include, exclude, checksum, path_style, region",
    )
    parser.add_argument(
        "--verify", action="store_true", help="hold the folder against what was fetched; nothing is fetched"
    )
    parser.add_argument("--repair", action="store_true", help="fetch again what --verify finds wrong")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object per line: progress, then the result"
    )
    return parser


def _config(text: str | None) -> dict[str, str]:
    """Read -c: 1. nothing   2. standard input   3. a file   4. the object itself."""
    if not text:  # 1
        return {}
    try:
        if text == "-":  # 2
            text = sys.stdin.read()
        elif text.startswith("@"):  # 3
            text = Path(text[1:]).expanduser().read_text()
        value: Any = jsons.loads(text)  # 4
    except OSError as exc:
        raise Invalid(f"The file of -c cannot be read: {exc.strerror}.") from exc
    except (jsons.InvalidJson, UnicodeDecodeError):
        raise Invalid(
            'What -c gives is no JSON; write an object, such as \'{"revision": "main"}\'.'
        ) from None
    if not isinstance(value, dict) or not all(
        isinstance(one, str | int | bool | None) for one in value.values()
    ):
        raise Invalid("What -c gives must be a JSON object of texts.")
    return {
        key: str(int(one) if isinstance(one, bool) else one) for key, one in value.items() if one is not None
    }


def hide_argument(text: str | None, config: Mapping[str, str]) -> None:
    """Overwrite -c in this process's command line when it holds a secret, so that `ps` does not show it from then on.

    The kernel reads command lines from the process's own memory, which the process may write. Until Python runs this the text can be seen:
    an environment variable, a file or standard input are better.
    """
    secrets = [config[key] for key in SECRET_KEYS if config.get(key)]
    SECRETS.learn(secrets)
    if not secrets or not text or text == "-" or text.startswith("@"):
        return
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, proc(5)
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            whole = memory.read(end - start)
            memory.seek(start)
            memory.write(whole.replace(os.fsencode(text), b"*" * len(os.fsencode(text))))
    except (OSError, ValueError, IndexError):
        pass  # a hardened kernel: what stands there stands there


def _settings() -> tuple[DownloadSettings, Proxies]:
    """Read this room's settings alone, and the proxies: a fault elsewhere in the environment does not matter for a download."""
    environ: Mapping[str, str] = os.environ
    if environ.get("APPLIANCE_ENV_FILE"):
        from appliance.settings import effective_environ  # which needs every room: only where it must be

        environ = effective_environ(environ)[0]
    settings, problems = read_settings(DownloadSettings, environ)
    if settings is None:
        raise BadEnvironment(problems)
    SECRETS.learn(
        secret.get_secret_value()
        for secret in (settings.hf_auth_token, settings.ms_token, settings.access_key, settings.secret_key)
    )
    proxies = Proxies.from_environ(environ)
    SECRETS.learn(proxies.secrets)
    return settings, proxies


def _folder(given: str | None, settings: DownloadSettings) -> Path:
    chosen = Path(given) if given else settings.download_dir or Path("~/downloads")
    return Path(os.path.abspath(chosen.expanduser()))


async def _act(
    options: argparse.Namespace,
    source: str,
    folder: Path,
    engine: DownloadEngine,
    config: Mapping[str, str],
) -> int:
    """Do what was asked for: 1. verify   2. repair   3. download."""
    if options.verify and not source and not options.repair:  # 1
        return _verified(await engine.verify(folder), folder, is_json=options.json)
    with (
        Lines(is_json=options.json)
        if options.json or not sys.stderr.isatty()
        else Bar(redact_source(source or str(folder)))
    ) as show:
        if options.repair:  # 2
            done = await engine.repair(folder, show.progress, config)
        else:  # 3
            done = await engine.download(
                DownloadRequest(source, folder, options.max_workers, config), show.progress
            )
    _tell(done, is_json=options.json)
    return _verified(await engine.verify(folder), folder, is_json=options.json) if options.verify else 0


def _tell(done: DownloadResult, *, is_json: bool) -> None:
    if is_json:
        print(jsons.dumps_text({"status": "completed"} | asdict(done) | {"output_dir": str(done.output_dir)}))
        return
    rate = f", {size(done.fetched_bytes / done.seconds)}/s" if done.seconds > 0 else ""
    how = (
        f"{size(done.fetched_bytes)} fetched in {done.seconds:.1f} s{rate}"
        if done.fetched_bytes
        else "nothing had to be fetched"
    )
    print(
        f"{done.files} file{'s' if done.files != 1 else ''}, {size(done.total_bytes)} in {done.output_dir}; {how}"
    )


def _verified(flaws: list[FileFault], folder: Path, *, is_json: bool) -> int:
    if is_json:
        print(
            jsons.dumps_text(
                {"status": "flawed" if flaws else "verified", "flaws": [asdict(flaw) for flaw in flaws]}
            )
        )
    else:
        print("\n".join(render_faults(flaws)) if flaws else f"{folder} is as it was fetched")
    return 1 if flaws else 0


def _failed(exc: ApplianceError, *, is_json: bool) -> int:
    text = SECRETS.redact(exc.message)
    if is_json:
        print(
            jsons.dumps_text(
                {"status": "failed", "error": {"kind": exc.kind.value, "code": exc.code, "message": text}}
            )
        )
    else:
        print(f"error: {text}", file=sys.stderr)
    return USAGE_ERROR if isinstance(exc, Invalid) else os.EX_CONFIG if exc.code == "unusable_proxy" else 1


def _run(work: Any, folder: Path) -> int:
    """Run to the end, or until a signal; what was fetched until then is kept."""
    stopped: list[int] = []

    async def guarded() -> int:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def stop(number: int) -> None:
            stopped.append(number)
            if task is not None:
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        return int(await work)

    import uvloop

    try:
        return int(uvloop.run(guarded()))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print(
            f"stopped; what was fetched is kept in {folder}, and the same command goes on from there",
            file=sys.stderr,
        )
        return 128 + (stopped[0] if stopped else signal.SIGINT)
