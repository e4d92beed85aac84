"""Who calls, for handlers whose address the pipeline has opened: the user, and the author of a change."""

from typing import Final

from appliance.accounts.actor import Actor, UserFacts
from appliance.accounts.audit_log import Author
from appliance.base.errors import Forbidden, NotFound
from appliance.base.ids import is_id
from appliance.front.pipeline.request import Request

BASE: Final = "/api/v1"
SHOWN_CHARACTERS: Final = 64


def user_of(request: Request) -> UserFacts:
    """Return the user who calls.

    Raises:
        Forbidden: The caller has no account.
    """
    actor = request.actor
    if actor is None or actor.user is None:
        raise Forbidden("This address belongs to an account.", code="account_required")
    return actor.user


def require_session(request: Request, *, what: str) -> Actor:
    """Return the caller, who has to be logged in: an API key must not widen what it may do.

    Args:
        what: What is refused to API keys, such as `make API keys`.

    Raises:
        Forbidden: An API key was sent.
    """
    user_of(request)
    actor = request.actor
    assert actor is not None
    if actor.key is not None:
        raise Forbidden(
            f"An API key cannot {what}. Log in, and send the access token.", code="session_required"
        )
    return actor


def author_of(request: Request) -> Author:
    """Return who makes a change, for the audit: a user, or an operator without an account."""
    actor = request.actor
    if actor is not None and actor.kind == "user" and actor.user is not None:
        return Author("user", actor.user.id, request.peer)
    return Author("operator", None, request.peer)


def id_of(request: Request, *, what: str, code: str) -> str:
    """Return the id in the address.

    Args:
        what: What it is the id of, such as `user`.
        code: Of the refusal.

    Raises:
        NotFound: It has not the form of our ids, so there is nothing of this id.
    """
    text = request.params["id"]
    if not is_id(text):
        raise NotFound(f"There is no {what} {text[:SHOWN_CHARACTERS]!r}.", code=code)
    return text
