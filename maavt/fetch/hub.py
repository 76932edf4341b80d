"""The Hugging Face hub: which archives a data set has, where they are, and what their bytes must be."""

import fnmatch

from maavt.fetch import SESSION, Failed
from maavt.fetch.archive import Archive


def archives(endpoint: str, repository: str, revision: str, pattern: str) -> tuple[list[Archive], dict[str, str]]:
    """The files of a data set whose names match, in the order of their names, and the headers for fetching them.

    Raises Failed, kind session, where the hub cannot be asked or has no such files.
    """
    from huggingface_hub import HfApi, get_token, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    endpoint, token = endpoint.rstrip("/"), get_token()
    try:
        tree = list(HfApi(endpoint, token=token).list_repo_tree(repository, revision=revision, repo_type="dataset"))
    except HfHubHTTPError as error:
        raise Failed(SESSION, f"{endpoint} does not list the data set {repository} at {revision} "
                     f"({type(error).__name__}); does it exist, and may you see it?") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Failed(SESSION, f"{endpoint} does not answer as the hub does ({type(error).__name__}); is a portal in "
                     "between, or is the address wrong?") from error
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):  # which of its kind the hub's client uses has changed
            raise
        raise Failed(SESSION, f"{endpoint} cannot be reached ({type(error).__name__}); check the network") from error
    found = [
        Archive(name=file.path, size=file.size, sha256=file.lfs.sha256 if getattr(file, "lfs", None) else None,
                url=hf_hub_url(repository, file.path, repo_type="dataset", revision=revision, endpoint=endpoint))
        for file in sorted(tree, key=lambda file: file.path)
        if fnmatch.fnmatch(file.path, pattern) and hasattr(file, "size")
    ]
    if not found:
        raise Failed(SESSION, f"{endpoint}: the data set {repository} has no file like {pattern}")
    return found, {"Authorization": f"Bearer {token}"} if token else {}
