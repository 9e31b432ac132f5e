"""Messages that transformers' server writes between the quotes of a JSON string."""


def quotable(text: str) -> str:
    """A message that stays one line and ends no quotes.

    Args:
        text (`str`): The message.
    """
    return " ".join(text.replace("\\", "/").replace('"', "'").split())
