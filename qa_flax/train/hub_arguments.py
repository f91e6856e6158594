"""The training arguments that concern the Hugging Face Hub (host)."""

from typing import Any

from qa_flax.models.push import check_repo_id

HUB_ARGUMENTS = (
    "hub_model_id",
    "hub_strategy",
    "hub_token",
    "hub_private_repo",
    "hub_always_push",
    "hub_revision",
)


def invalid_hub_arguments(args: Any) -> list[str]:
    """What is wrong with the arguments of a push; no request is made."""
    if not getattr(args, "push_to_hub", False) or args.hub_model_id is None:
        return []
    try:
        check_repo_id(args.hub_model_id, "hub_model_id")
    except ValueError as error:
        return [str(error)]
    return []


def without_push(args: Any, defaults: Any) -> dict[str, tuple[Any, str]]:
    """The arguments that have no effect without `push_to_hub`: their values, and the reason.

    The value of a token is not shown. `hub_private_repo` also makes a Space of trackio private.
    """
    if getattr(args, "push_to_hub", False):
        return {}
    found = {}
    for name in HUB_ARGUMENTS:
        value = getattr(args, name, None)
        is_used = name == "hub_private_repo" and "trackio" in (args.report_to or ())
        if value == getattr(defaults, name, None) or is_used:
            continue
        shown = "***" if name == "hub_token" else getattr(value, "value", value)
        found[name] = shown, " has no effect without push_to_hub=True"
    return found
