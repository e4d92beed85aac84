"""What may be shown of a request."""

from pathlib import Path

from appliance.base.reach import FolderPolicy, HostPolicy
from appliance.downloads.contract import redact_source
from appliance.downloads.sources.contract import SourceContext
from tests.downloads.engines import download_request


def test_a_source_is_shown_without_what_may_be_a_key() -> None:
    assert redact_source("https://me:pass@x.example/f?X-Amz-Signature=abc#y") == "https://x.example/f"
    assert redact_source("hf://ns/repo@main") == "hf://ns/repo@main"
    assert redact_source("s3://bucket/key#1?X-Amz-Signature=abc") == "s3://bucket/key#1"
    assert redact_source("file:///a/what?.gguf") == "file:///a/what?.gguf"
    errand = SourceContext("ns/repo", {"hf_token": "hf_verysecret"}, HostPolicy(), FolderPolicy())
    assert "hf_verysecret" not in repr(errand) + repr(
        download_request("ns/repo", Path("/x"), {"hf_token": "hf_verysecret"})
    )
