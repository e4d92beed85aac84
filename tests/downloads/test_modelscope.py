"""ms:// sources: what ModelScope's own codes mean, and lists that cannot be read."""

from typing import Any

import pytest
from aiohttp import web

from appliance.base.errors import ApplianceError, Forbidden, Invalid, NotFound, UpstreamFailed
from appliance.downloads.sources.modelscope import ModelScope
from tests.downloads.pages import serving_pages, source_context

LIST = "/api/v1/models/ns/repo/repo/files"
FILE = {"Path": "sub/model.bin", "Size": 3, "Sha256": "aa", "Revision": "r", "Type": "blob"}


async def listing(answer: Any, address: str = "ns/repo", **config: str) -> list[str]:
    async def page(_: web.Request) -> web.Response:
        return web.json_response(answer)

    async with serving_pages({LIST: page}) as url:
        source = ModelScope(source_context(address, ms_endpoint=url, **config))
        try:
            return [file.path for file in (await source.listing()).files]
        finally:
            await source.close()


@pytest.mark.parametrize(
    ("address", "paths"),
    [
        ("ns/repo", ["sub/model.bin"]),
        ("ns/repo/sub", ["model.bin"]),
        ("ns/repo@v1/sub/model.bin", ["model.bin"]),
    ],
)
async def test_files_are_named_from_the_sub_path_on(address: str, paths: list[str]) -> None:
    answer = {"Code": 200, "Data": {"Files": [FILE, {"Type": "tree", "Path": "sub"}]}}
    assert await listing(answer, address) == paths


@pytest.mark.parametrize(
    ("answer", "address", "kind", "text"),
    [
        ({"Code": 10010205002}, "ns/repo", Forbidden, r"ModelScope refuses access \(10010205002\)"),
        ({"Code": 401}, "ns/repo", Forbidden, "`ms_token` must be allowed"),
        ({"Code": 404}, "ns/repo@v9", NotFound, "does not exist at ModelScope, or has no revision v9"),
        ({"Code": 500, "Message": "it does not exist"}, "ns/repo", NotFound, "does not exist at ModelScope"),
        ({"Code": 200, "Data": None}, "ns/repo", UpstreamFailed, r"cannot be read \(code 200\)"),
        (["odd"], "ns/repo", UpstreamFailed, r"cannot be read \(code None\)"),
        (
            {"Code": 200, "Data": {"Files": [FILE]}},
            "ns/repo/other",
            NotFound,
            "has no other at revision master",
        ),
    ],
)
async def test_an_answer_without_files_has_its_error(
    answer: Any, address: str, kind: type[ApplianceError], text: str
) -> None:
    with pytest.raises(kind, match=text):
        await listing(answer, address)


@pytest.mark.parametrize(
    ("address", "token", "text"),
    [
        ("repo", "", "must be ms://namespace/repository"),
        ("a/../b", "", "must be"),
        ("ns/repo", "a;b", "`ms_token`"),
    ],
)
def test_a_bad_address_or_token_is_refused(address: str, token: str, text: str) -> None:
    with pytest.raises(Invalid, match=text):
        ModelScope(source_context(address, ms_endpoint="https://m.test", ms_token=token))
