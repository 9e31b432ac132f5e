"""An HTTP client that takes no more from a server than an answer can be, and goes nowhere else."""

from typing import Any

from dspark_hf.messages import shown


def bounded_client(max_bytes: int) -> Any:
    """A client for `openai.AsyncOpenAI(http_client=...)`: replies are read up to a size, redirects are not followed.

    Args:
        max_bytes (`int`): Most bytes of a reply's body, errors included.

    Raises:
        `openai.OpenAIError`: When a reply is larger, is compressed though that is not asked for, or sends elsewhere.
    """
    from openai import DefaultAsyncHttpxClient, OpenAIError

    class BoundedClient(DefaultAsyncHttpxClient):
        async def send(self, request: Any, **options: Any) -> Any:
            # What is small when it arrives may be gigabytes once it is unpacked.
            request.headers["Accept-Encoding"] = "identity"
            response = await super().send(request, **{**options, "stream": True, "follow_redirects": False})
            try:
                encoding = response.headers.get("Content-Encoding", "identity")
                if encoding != "identity":
                    raise OpenAIError(f"The reply is compressed ({shown(encoding)}), which was not asked for.")
                if response.has_redirect_location:
                    raise OpenAIError(
                        f"The server sends to {shown(response.headers['Location'])}, where nothing is sent without "
                        "your word: give that address if you trust it."
                    )
                body = bytearray()
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > max_bytes:
                        raise OpenAIError(f"The reply has more than {max_bytes} bytes, far more than was asked for.")
            finally:
                await response.aclose()
            headers = [(name, value) for name, value in response.headers.multi_items() if name not in _OF_TRANSFER]
            return type(response)(response.status_code, headers=headers, content=bytes(body), request=request)

    return BoundedClient()


# They describe how the body came, not what it is.
_OF_TRANSFER = ("content-length", "transfer-encoding")
