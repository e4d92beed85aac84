"""`appliance download`: the stand-alone downloader; it uses the download engine of the server.

It runs as the user who calls it and trusts that user: any folder and host, unless DOWNLOAD_ALLOWED_DIRS or
DOWNLOAD_ALLOWED_HOSTS are set. Exit codes: 0 done · 1 it failed, or faults were found · 2 wrong arguments ·
78 invalid settings · 130, 143 stopped by a signal.
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
from appliance.base.settings import InvalidSettings, read_settings
from appliance.download_output import ProgressBar, ProgressLines, render_faults, size
from appliance.downloads.contract import DownloadRequest, DownloadResult, FileFault, redact_source
from appliance.downloads.engine import DownloadEngine
from appliance.downloads.settings import DownloadSettings

USAGE_ERROR = 2
SECRET_KEYS = ("hf_token", "ms_token", "access_key", "secret_key")
HELP = """Download model files. SOURCE: hf://namespace/repository[@revision][/path] or namespace/repository,
s3://bucket/prefix, obs://bucket/prefix, ms://namespace/repository, pvc://path, file:///path, https://host/file.
A download that was interrupted is continued."""


def main(arguments: list[str]) -> int:
    """Download, verify or repair; return the exit code."""
    options = build_parser().parse_args(arguments)
    source = options.source or options.source_option
    try:
        config = _parse_config(options.config)
        hide_argument(options.config, config)
        settings, proxies = _read_settings()
        folder = _choose_folder(options.output_dir, settings)
        if not source and not (options.verify or options.repair):
            raise Invalid("Give a SOURCE, or a folder to --verify or --repair (-o).")
        engine = DownloadEngine(settings, output_roots=None, is_trusted=True, proxies=proxies)
        request = DownloadRequest(source, folder, options.max_workers, config)
        return _run(_act(options, engine, request), folder)
    except InvalidSettings as exc:
        for problem in exc.problems:
            print(f"error: {problem}", file=sys.stderr)
        return os.EX_CONFIG
    except ApplianceError as exc:
        return _print_failure(exc, is_json=options.json)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(prog="appliance download", description=HELP)
    parser.add_argument("source", nargs="?", help="what to download")
    parser.add_argument(
        "-s", "--source", dest="source_option", metavar="SOURCE", help="the same, see docs/compatibility.md"
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
        "ms_token, ms_revision, access_key, secret_key, endpoint, revision, include, exclude, checksum, "
        "path_style, region",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the folder with what was downloaded; nothing is downloaded",
    )
    parser.add_argument("--repair", action="store_true", help="download again what --verify finds wrong")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object per line: progress, then the result"
    )
    return parser


def _parse_config(text: str | None) -> dict[str, str]:
    """Parse -c: 1. nothing   2. standard input   3. a file   4. the object itself."""
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
            'The value of -c is not JSON. Write an object, such as \'{"revision": "main"}\'.'
        ) from None
    if not isinstance(value, dict) or not all(
        isinstance(one, str | int | bool | None) for one in value.values()
    ):
        raise Invalid("The value of -c must be a JSON object of texts.")
    return {
        key: str(int(one) if isinstance(one, bool) else one) for key, one in value.items() if one is not None
    }


def hide_argument(text: str | None, config: Mapping[str, str]) -> None:
    """Overwrite -c in this process's command line if it has a secret, so that `ps` does not show it.

    The kernel reads command lines from the process's own memory, which the process may write. Until this runs
    the text is visible: an environment variable, a file or standard input are better.

    Args:
        text: The value of -c; None = it is absent.
        config: The parsed value.
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
        pass  # not permitted by the kernel: the text stays visible


def _read_settings() -> tuple[DownloadSettings, Proxies]:
    """Read the settings of downloads, and the proxies; faults of other settings do not matter here."""
    environ: Mapping[str, str] = os.environ
    if environ.get("APPLIANCE_ENV_FILE"):
        from appliance.settings import effective_environ  # imports every package: only if needed

        environ = effective_environ(environ)[0]
    settings, problems = read_settings(DownloadSettings, environ)
    if settings is None:
        raise InvalidSettings(problems)
    SECRETS.learn(
        secret.get_secret_value()
        for secret in (settings.hf_auth_token, settings.ms_token, settings.access_key, settings.secret_key)
    )
    proxies = Proxies.from_environ(environ)
    SECRETS.learn(proxies.secrets)
    return settings, proxies


def _choose_folder(given: str | None, settings: DownloadSettings) -> Path:
    chosen = Path(given) if given else settings.download_dir or Path("~/downloads")
    return Path(os.path.abspath(chosen.expanduser()))


async def _act(options: argparse.Namespace, engine: DownloadEngine, request: DownloadRequest) -> int:
    """Run the action: 1. verify   2. repair   3. download."""
    source, folder = request.source, request.output_dir
    if options.verify and not source and not options.repair:  # 1
        return _print_faults(await engine.verify(folder), folder, is_json=options.json)
    is_plain = options.json or not sys.stderr.isatty()
    title = redact_source(source or str(folder))
    with ProgressLines(is_json=options.json) if is_plain else ProgressBar(title) as show:
        if options.repair:  # 2
            done = await engine.repair(folder, show.progress, request.config)
        else:  # 3
            done = await engine.download(request, show.progress)
    _print_result(done, is_json=options.json)
    if not options.verify:
        return 0
    return _print_faults(await engine.verify(folder), folder, is_json=options.json)


def _print_result(done: DownloadResult, *, is_json: bool) -> None:
    if is_json:
        print(jsons.dumps_text({"status": "completed"} | asdict(done) | {"output_dir": str(done.output_dir)}))
        return
    rate = f", {size(done.fetched_bytes / done.seconds)}/s" if done.seconds > 0 else ""
    how = "nothing had to be downloaded"
    if done.fetched_bytes:
        how = f"{size(done.fetched_bytes)} downloaded in {done.seconds:.1f} s{rate}"
    plural = "s" if done.files != 1 else ""
    print(f"{done.files} file{plural}, {size(done.total_bytes)} in {done.output_dir}; {how}")


def _print_faults(faults: list[FileFault], folder: Path, *, is_json: bool) -> int:
    """Print what is wrong with a folder; return the exit code."""
    if is_json:
        status = "flawed" if faults else "verified"
        print(jsons.dumps_text({"status": status, "flaws": [asdict(fault) for fault in faults]}))
    else:
        print("\n".join(render_faults(faults)) if faults else f"{folder} is complete and unchanged")
    return 1 if faults else 0


def _print_failure(exc: ApplianceError, *, is_json: bool) -> int:
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
    """Run until done or stopped by a signal; return the exit code."""
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
            f"stopped; what was downloaded is kept in {folder}, and the same command continues from there",
            file=sys.stderr,
        )
        return 128 + (stopped[0] if stopped else signal.SIGINT)
