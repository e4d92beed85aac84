"""Decisions of downloads: credentials and where they go, unsafe names, what is kept of a partial file."""

from pathlib import Path

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import Forbidden, Invalid, NotFound, TimedOut, UpstreamFailed
from appliance.base.reach import FolderPolicy, HostPolicy
from appliance.downloads import manifest
from appliance.downloads import part as download_part
from appliance.downloads.contract import DownloadProgress, DownloadRequest, redact_source
from appliance.downloads.engine import DownloadEngine
from appliance.downloads.names import check_names, find_unsafe_reason, select_files
from appliance.downloads.part import PartialFile, Spans
from appliance.downloads.progress import ProgressMeter
from appliance.downloads.retry import RetryCounter
from appliance.downloads.rules import DownloadRules
from appliance.downloads.sources.contract import Interrupted, RemoteFile, SourceContext, SourceTimeouts
from appliance.downloads.sources.table import split_source
from tests.downloads.workplace import download_request, engine, settings

ENV = {
    "hf_auth_token": "hf_of_the_operator",
    "access_key": "AKIAOPERATOR",
    "secret_key": "secretoperator",
    "ms_token": "ms_of_the_operator",
    "endpoint": "https://store.example.com",
}


SIZE = 20 << 20


def rules(*, is_trusted: bool = False, **values: object) -> DownloadRules:
    return DownloadRules(settings(**values), None, is_trusted)


def config(
    source: str, given: dict[str, str], *, is_trusted: bool = False, **values: object
) -> dict[str, str]:
    return rules(is_trusted=is_trusted, **values).choose_config(
        DownloadRequest(source, Path("/x"), config=given), split_source(source)[0]
    )


def test_a_requests_config_wins_over_the_settings() -> None:
    chosen = config(
        "ns/repo",
        {"hf_token": "hf_of_the_caller", "hf_revision": "v2"},
        hf_revision="v1",
        ms_revision="v3",
        **ENV,
    )
    assert (chosen["hf_token"], chosen["hf_revision"], chosen["ms_revision"]) == (
        "hf_of_the_caller",
        "v2",
        "v3",
    )
    assert config("ns/repo", {}, **ENV)["hf_token"] == "hf_of_the_operator"
    assert config("ns/repo", {})["hf_endpoint"] == "https://huggingface.co"


@pytest.mark.parametrize(
    ("source", "given", "kept_back"),
    [
        ("ns/repo", {"hf_endpoint": "https://evil.example"}, {"hf_token"}),
        ("s3://b/p", {"endpoint": "https://evil.example"}, {"access_key", "secret_key"}),
        ("ms://ns/repo", {"ms_endpoint": "https://evil.example"}, {"ms_token"}),
        ("s3://b/p", {"access_key": "AKIACALLER"}, {"secret_key"}),
        ("ns/repo", {"hf_endpoint": "https://huggingface.co"}, set()),
    ],
)
def test_own_credentials_go_to_own_endpoints_only(
    source: str, given: dict[str, str], kept_back: set[str]
) -> None:
    chosen = config(source, given, **ENV)
    assert {"hf_token", "access_key", "secret_key", "ms_token"} - set(chosen) == kept_back
    if "access_key" not in given:
        assert set(config(source, given, is_trusted=True, **ENV)) >= {
            "hf_token",
            "access_key",
            "secret_key",
            "ms_token",
        }


def test_config_that_cannot_be_meant_is_refused() -> None:
    with pytest.raises(Invalid, match="Did you mean hf_token"):
        config("ns/repo", {"hf_tokn": "x"})
    for address in (
        "ftp://x",
        "huggingface.co",
        "https://u:p@x.example",
        "https://x.example/?a=b",
        "https://x:99999999",
    ):
        with pytest.raises(Invalid, match="`hf_endpoint` must be") as caught:
            config("ns/repo", {"hf_endpoint": address})
        assert "u:p" not in caught.value.message


def test_only_the_operators_endpoint_may_be_private() -> None:
    here = rules(hf_endpoint="http://10.0.0.5:8080")
    assert here.reach_of("hf", {"hf_endpoint": "http://10.0.0.5:8080"}).refusal_reason("10.0.0.5") == ""
    assert "private" in here.reach_of("hf", {"hf_endpoint": "http://10.0.0.6"}).refusal_reason("10.0.0.6")
    listed = rules(download_allowed_hosts="10.0.0.0/24")
    assert listed.reach_of("hf", {"hf_endpoint": "http://10.0.0.6"}).refusal_reason("10.0.0.6") == ""
    assert rules(is_trusted=True).reach_of("https", {}).is_open
    assert not rules(is_trusted=True, download_allowed_hosts="a.example").reach_of("https", {}).is_open


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "::1",
        "169.254.169.254",
        "10.1.2.3",
        "192.168.1.1",
        "100.64.0.1",
        "0.0.0.0",
        "::",
        "fe80::1%eth0",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",
        "224.0.0.1",
        "fd00::1",
        "nonsense",
    ],
)
def test_addresses_that_are_not_public_are_refused_unless_listed(address: str) -> None:
    assert HostPolicy.listed(["*"]).refusal_reason(address)
    assert HostPolicy.unrestricted().refusal_reason(address) == ""


def test_listed_names_are_patterns() -> None:
    reach = HostPolicy.listed(["files.example.com", "*.Example.org", "10.0.0.0/8"])
    for host in ("files.example.com", "a.b.example.org", "FILES.example.com.", "10.9.9.9"):
        reach.check_host(host)
    for host in ("example.com", "xfiles.example.com", "example.org", "11.0.0.1", ""):
        with pytest.raises(Forbidden):
            reach.check_host(host)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "C:\\x",
        "c:x",
        "a\\b",
        "a//b",
        "./a",
        "a/.",
        "",
        "a\0b",
        "a\nb",
        ".lock",
        ".download/x",
        ".download.json",
        "x" * 256,
        "a/" + "ü" * 128,
        "\udc80",
    ],
)
def test_names_that_lead_elsewhere_or_cannot_be_are_refused(name: str) -> None:
    assert find_unsafe_reason(name)
    with pytest.raises(Invalid) as caught:
        check_names([RemoteFile(name, 1)])
    assert caught.value.code == "unsafe_name"


def test_unusual_names_are_fine_and_clashes_are_not() -> None:
    check_names(
        [
            RemoteFile(name, 1)
            for name in (
                ".gitattributes",
                "a b",
                "ü/模型.gguf",
                "a..b",
                "sub/.lock",
                "x" * 255,
                "a/b",
                "ab:c",
                "ab",
            )
        ]
    )
    with pytest.raises(Invalid, match="twice"):
        check_names([RemoteFile("a", 1), RemoteFile("a", 2)])
    with pytest.raises(Invalid, match="as a file and as a folder"):
        check_names([RemoteFile("a/b/c", 1), RemoteFile("a", 2)])


def test_patterns_choose_files() -> None:
    files = [RemoteFile(name, 1) for name in ("a.gguf", "sub/b.gguf", "sub/c.bin", "README.md")]

    def chosen(**patterns: str) -> list[str]:
        return [file.path for file in select_files(files, patterns, source="x")]

    assert chosen() == ["a.gguf", "sub/b.gguf", "sub/c.bin", "README.md"]
    assert chosen(include="*.gguf") == ["a.gguf", "sub/b.gguf"]
    assert chosen(include="sub/, README.md", exclude="*.bin") == ["sub/b.gguf", "README.md"]
    with pytest.raises(NotFound, match="has no files"):
        select_files([], {}, source="x")


def test_sources_are_told_by_their_scheme() -> None:
    assert split_source("ns/repo") == ("hf", "ns/repo")
    assert split_source("S3://b/p") == ("s3", "b/p")
    assert split_source(" hf://ns/repo@main/x ") == ("hf", "ns/repo@main/x")
    for text in (
        "",
        "repo",
        "/etc/passwd",
        "./models",
        "~/x",
        "ns/repo/../x",
        "gs://b/p",
        "http://x/y",
        "s3:/b",
        "a\0b/c",
    ):
        with pytest.raises(Invalid):
            split_source(text)
    with pytest.raises(Invalid, match="Did you mean https"):
        split_source("http://x/y")
    assert "for a folder of this machine" in _message(lambda: split_source("/data/x")).lower()


def _message(ask: object) -> str:
    with pytest.raises(Invalid) as caught:
        ask()  # type: ignore[operator]
    return caught.value.message


def test_a_source_is_shown_without_what_may_be_a_key() -> None:
    assert redact_source("https://me:pass@x.example/f?X-Amz-Signature=abc#y") == "https://x.example/f"
    assert redact_source("hf://ns/repo@main") == "hf://ns/repo@main"
    assert redact_source("s3://bucket/key#1?X-Amz-Signature=abc") == "s3://bucket/key#1"
    assert redact_source("file:///a/what?.gguf") == "file:///a/what?.gguf"
    errand = SourceContext("ns/repo", {"hf_token": "hf_verysecret"}, HostPolicy(), FolderPolicy())
    assert "hf_verysecret" not in repr(errand) + repr(
        download_request("ns/repo", Path("/x"), {"hf_token": "hf_verysecret"})
    )


async def test_an_invalid_request_is_refused(tmp_path: Path) -> None:
    for workers in (0, 65):
        with pytest.raises(Invalid, match="max_workers"):
            await engine(tmp_path).download(download_request("ns/repo", tmp_path, workers=workers))
    with pytest.raises(NotFound, match="nothing was downloaded"):
        await engine(tmp_path).verify(tmp_path)


async def test_callers_write_where_the_settings_allow(tmp_path: Path) -> None:
    source = f"file://{tmp_path}/allowed/model"
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "model").write_bytes(b"x")
    fetcher = DownloadEngine(
        settings(download_allowed_dirs=tmp_path / "allowed"),
        output_roots=(tmp_path / "state/models", tmp_path / "allowed"),
    )
    for folder in ("state/models/one", "allowed/two"):
        assert (await fetcher.download(download_request(source, tmp_path / folder))).files == 1
    for folder in ("state/other", "elsewhere"):
        with pytest.raises(Forbidden, match="DOWNLOAD_DIR"):
            await fetcher.download(download_request(source, tmp_path / folder))


def test_spans_are_joined_and_their_gaps_known() -> None:
    spans = Spans([(10, 20), (30, 40)])
    assert spans.missing(50) == [(0, 10), (20, 30), (40, 50)]
    spans.add(0, 10)
    spans.add(19, 31)
    spans.add(5, 5)
    assert (spans.all, spans.prefix(), spans.total(), spans.missing(40)) == ([(0, 40)], 40, 40, [])
    assert Spans([(5, 9)]).prefix() == 0


def _begun(folder: Path, remote: RemoteFile) -> PartialFile:
    part = PartialFile(folder / ".download", remote, asked="hf://ns/repo")
    assert part.recall() == 0
    part.open()
    part.write([b"abc", b"def"], 0)
    part.write([b"xyz"], 10)
    return part


def test_a_part_is_gone_on_with_only_when_it_is_of_the_same_file(tmp_path: Path) -> None:
    remote = RemoteFile("model", SIZE, "sha256:aa", "tag")
    _begun(tmp_path, remote)  # not closed: as if killed
    assert PartialFile(tmp_path / ".download", remote, asked="hf://ns/repo").recall() == 9
    assert (
        PartialFile(
            tmp_path / ".download", RemoteFile("model", SIZE, "sha256:bb", "tag"), asked="hf://ns/repo"
        ).recall()
        == 0
    )
    assert (
        PartialFile(
            tmp_path / ".download", RemoteFile("model", SIZE + 1, "sha256:aa", "tag"), asked="hf://ns/repo"
        ).recall()
        == 0
    )
    assert PartialFile(tmp_path / ".download", remote, asked="hf://other/repo").recall() == 0
    (next((tmp_path / ".download").glob("*.json"))).write_text("{")
    assert PartialFile(tmp_path / ".download", remote, asked="hf://ns/repo").recall() == 0


def test_a_file_without_version_is_not_resumed(tmp_path: Path) -> None:
    _begun(tmp_path, RemoteFile("model", SIZE))
    assert PartialFile(tmp_path / ".download", RemoteFile("model", SIZE), asked="hf://ns/repo").recall() == 0


def test_after_another_boot_only_what_was_synced_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = RemoteFile("model", SIZE, "sha256:aa")
    part = _begun(tmp_path, remote)
    monkeypatch.setattr(download_part, "boot_id", lambda: "another boot")
    assert PartialFile(tmp_path / ".download", remote, asked="hf://ns/repo").recall() == 0
    monkeypatch.undo()
    part.close()
    monkeypatch.setattr(download_part, "boot_id", lambda: "another boot")
    assert PartialFile(tmp_path / ".download", remote, asked="hf://ns/repo").recall() == 9


def test_a_part_that_lost_bytes_is_not_believed(tmp_path: Path) -> None:
    remote = RemoteFile("model", SIZE, "sha256:aa")
    part = _begun(tmp_path, remote)
    part.path.write_bytes(b"abcdef")
    assert PartialFile(tmp_path / ".download", remote, asked="hf://ns/repo").recall() == 6


def test_the_journal_and_the_manifest_are_read_whatever_was_cut(tmp_path: Path) -> None:
    (tmp_path / ".download").mkdir()
    first = manifest.ManifestRow("a", 1, "00", modified_ns=5)
    manifest.append_journal(tmp_path, first)
    with (tmp_path / ".download" / "journal").open("ab") as file:
        file.write(b'{"path": "b", "si')
    assert manifest.known_rows(tmp_path) == {"a": first}
    manifest.write(
        tmp_path,
        manifest.ManifestEntry(
            "s3://b/one", "s3://b/one", finished_at="now", files=(first, manifest.ManifestRow("c", 1, "01"))
        ),
    )
    manifest.write(
        tmp_path,
        manifest.ManifestEntry(
            "s3://b/two", "s3://b/two", finished_at="now", files=(manifest.ManifestRow("c", 2, "02"),)
        ),
    )
    assert {entry.asked: [row.path for row in entry.files] for entry in manifest.read(tmp_path)} == {
        "s3://b/one": ["a"],
        "s3://b/two": ["c"],
    }
    (tmp_path / ".download.json").write_text("[]")
    assert manifest.read(tmp_path) == []


def test_pauses_grow_end_and_follow_retry_after() -> None:
    retries = RetryCounter(SourceTimeouts(tries=4, first_pause_s=1, longest_pause_s=10))
    pauses = [retries.next_pause_s(Interrupted("x")) for _ in range(4)]
    assert 0.75 <= (pauses[0] or 0) <= 1.25
    assert 1.5 <= (pauses[1] or 0) <= 2.5
    assert pauses[3] is None
    retries.progressed()
    assert retries.next_pause_s(Interrupted("x", retry_after_s=7)) == 7
    assert retries.next_pause_s(Interrupted("x", retry_after_s=700)) == 10
    assert retries.next_pause_s(Forbidden("x")) is None
    assert isinstance(retries.final_error(TimedOut("silent")), TimedOut)
    assert isinstance(retries.final_error(Interrupted("cut.")), UpstreamFailed)


def test_progress_is_reported_once_with_a_recent_rate() -> None:
    told: list[DownloadProgress] = []
    clock = FakeClock()
    meter = ProgressMeter(told.append, clock)
    meter.enter("fetching")
    meter.report()
    assert len(told) == 1
    for _ in range(10):
        clock.advance(1)
        meter.fetched(1000)
        meter.report()
    assert told[-1].rate_bytes_s == 1000
    for _ in range(10):
        clock.advance(1)
        meter.report()
    assert told[-1].rate_bytes_s == 0
