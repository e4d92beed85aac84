"""The field `model` of a form: found where it is, in whole bodies and in their beginnings."""

import pytest

from appliance.front.passthrough.form import MAX_FIELD_HEAD_BYTES, FormModel, boundary_of, find_model


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('multipart/form-data; boundary="a b"', b"a b"),
        ("Multipart/Form-Data; charset=utf-8; boundary=abc; x=y", b"abc"),
        ("multipart/form-data", b""),
        ("multipart/mixed; boundary=abc", b""),
        ("application/json", b""),
        ("multipart/form-data; boundary=" + "a" * 71, b"a" * 70),
        ("", b""),
    ],
)
def test_boundary_of_a_form(content_type: str, boundary: bytes) -> None:
    assert boundary_of(content_type) == boundary


def field(name: str, value: bytes, more: str = "") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"{more}\r\n'
    return b"--x\r\n" + head.encode() + b"\r\n" + value + b"\r\n"


FILE = field("file", b"RIFF\r\n--y\r\n\0\xff", '; filename="a.wav"\r\nContent-Type: audio/wav')
MODEL = field("model", b"whisper")


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (MODEL + FILE + b"--x--\r\n", "whisper"),
        (FILE + MODEL + b"--x--\r\n", "whisper"),
        (b"preamble\r\n" + MODEL + b"--x--", "whisper"),
        (field("prompt", b'name="model"') + MODEL + b"--x--", "whisper"),
        (
            b"--x\r\nContent-Type: text/plain\r\ncontent-disposition: form-data; name=model\r\n\r\nb\r\n--x--",
            "b",
        ),
        (field("model", "größe".encode()) + b"--x--", "größe"),
        (field("model", b"") + b"--x--", ""),
        (field("model", b"x" * 2000) + b"--x--", ""),
    ],
)
def test_the_model_of_a_form(body: bytes, name: str) -> None:
    found = find_model(body, b"x")
    assert found is not None
    assert found.name == name
    if name:
        assert body[found.start : found.end] == name.encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--x",
        b"--x\r\n",
        b"--x--\r\n",
        MODEL[:-3],  # its end is not there yet
        FILE + b"--x--\r\n",
        FILE[:40],
        field("model", b"a.wav", '; filename="a.wav"') + b"--x--",
        field("models", b"a") + b"--x--",
        b"--x\r\n" + b"a" * (MAX_FIELD_HEAD_BYTES + 10) + b"\r\n\r\nv\r\n--x--",
        b"--y\r\n" + MODEL[5:] + b"--y--",
    ],
)
def test_forms_without_a_model_that_can_be_read(body: bytes) -> None:
    assert find_model(body, b"x") is None


def test_a_form_in_pieces_has_its_model_once_that_is_complete() -> None:
    body = FILE + MODEL + b"--x--\r\n"
    found = [find_model(body[:size], b"x") for size in range(len(body) + 1)]
    first = next(number for number, one in enumerate(found) if one is not None)
    assert body[:first].endswith(b"whisper\r\n--x")
    assert set(found[first:]) == {
        FormModel("whisper", len(FILE) + len(MODEL) - 9, len(FILE) + len(MODEL) - 2)
    }
