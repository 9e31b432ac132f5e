"""What a Hub that refuses or does not answer means, in one line that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, is_offline_mode
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

_SIGN_IN = "No valid token was sent: run `hf auth login`, or pass token="
# By status, to who writes and to who reads.
_BUSY = {429: "It is asked too often: wait some minutes"}
_ADVICE = {
    **_BUSY,
    401: _SIGN_IN,
    403: "The token may not write there: use one with write access to that namespace, or another repo_id",
    404: "The repository is not there for this token: check repo_id, and the token's access if it is private",
    409: "Somebody else is changing the repository: wait, and push again",
    412: "Somebody else has changed the repository meanwhile: push again",
    413: "A file, or all of them together, is more than it takes: save smaller shards",
}
_ADVICE_TO_READ = {
    **_BUSY,
    401: f"There is no such repository, or it is private: check the name. {_SIGN_IN}",
    403: "The token may not read it: ask for access on its page, or use another token",
    404: "It is not there for this token: check name and revision, and the token's access if it is private",
}
UNANSWERED = (
    "The Hub did not answer. Check the network and proxy settings; HF_HUB_OFFLINE=1 uses what is in the local cache."
)


@contextmanager
def explained_push(repo_id: str) -> Iterator[None]:
    """Turn what keeps the repository `repo_id` from being written into an error that says what to do.

    Raises:
        `ValueError`: In place of the Hub's own errors.
    """
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        what_to_do = _ADVICE.get(status, "Push again: what was sent is kept")
        raise ValueError(f"The Hub refused to store {repo_id}. {what_to_do}. ({_one_line(error)})") from error
    except LocalTokenNotFoundError as error:
        raise ValueError(f"The Hub refused to store {repo_id}. {_ADVICE[401]}.") from error
    except OfflineModeIsEnabled as error:
        raise ValueError(
            f"{repo_id} cannot be pushed while HF_HUB_OFFLINE is set. Unset it, and push again."
        ) from error
    except HTTPError as error:
        raise ValueError(
            f"The Hub ({constants.ENDPOINT}) did not answer, so {repo_id} is not pushed. Check the network and proxy "
            "settings, and that neither HF_ENDPOINT nor HF_HUB_OFFLINE is set by mistake; then push again, what was "
            f"sent is kept. ({type(error).__name__}: {_one_line(error)})"
        ) from error


@contextmanager
def explained_load(name: str) -> Iterator[None]:
    """Turn a Hub that refuses or does not answer into an error that names what was to be loaded, `name`.

    Raises:
        `ValueError`: In place of those of the network and the Hub. Where a library has put the Hub's refusal into its
            own words, these stay.
    """
    try:
        yield
    except (OSError, HTTPError) as error:
        refusal = _refusal(error)
        if refusal is not None:
            what_to_do = _ADVICE_TO_READ.get(refusal.response.status_code, "It has a fault: try again later")
            raise ValueError(f"The Hub refused to send {name}. {what_to_do}. ({_one_line(refusal)})") from error
        if not is_unreachable(error):
            raise
        if is_offline_mode():
            raise ValueError(
                f"{name} is not in the local cache, and HF_HUB_OFFLINE is set. Load it once while online."
            ) from error
        raise ValueError(
            f"Cannot load {name}: the Hub ({constants.ENDPOINT}) does not answer, and the local cache has not all of "
            "its files. Check the name, the network and proxy settings. What the cache has whole is loaded without "
            "a network, and without waiting for one, under HF_HUB_OFFLINE=1."
        ) from error


def _refusal(error: BaseException) -> HfHubHTTPError | None:
    """The Hub's refusal, as its client tells it: of files that are not here either, it is the cause."""
    if isinstance(error, LocalEntryNotFoundError):
        error = error.__cause__
    return error if isinstance(error, HfHubHTTPError) else None


def is_unreachable(error: BaseException | None) -> bool:
    """Whether an `error`, or what it came from, is that of a network rather than of an answer."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return False
        if isinstance(error, HTTPError | LocalEntryNotFoundError | OfflineModeIsEnabled):
            return True
        error = error.__cause__ or error.__context__
    return False


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
