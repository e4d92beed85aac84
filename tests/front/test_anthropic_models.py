"""The list of models for Anthropic's clients."""

from appliance.front.openai.anthropic_models import anthropic_list, anthropic_model

ROW = {"id": "a", "object": "model", "created": 1_700_000_000, "owned_by": "user"}
MODEL = {
    "type": "model",
    "id": "a",
    "display_name": "a",
    "created_at": "2023-11-14T22:13:20.000000Z",
    "lifecycle": "active",
}


def test_a_model_has_the_official_fields() -> None:
    assert anthropic_model(ROW) == MODEL
    assert anthropic_model(ROW | {"max_model_len": 4096}) == MODEL | {"max_input_tokens": 4096}
    assert anthropic_model(ROW | {"n_ctx": 2048, "max_model_len": 4096})["max_input_tokens"] == 2048


def test_all_models_are_one_page() -> None:
    page = anthropic_list([ROW, ROW | {"id": "b"}])
    assert [model["id"] for model in page["data"]] == ["a", "b"]
    assert (page["has_more"], page["first_id"], page["last_id"]) == (False, "a", "b")
    assert anthropic_list([]) == {"data": [], "has_more": False, "first_id": None, "last_id": None}
