"""Models of the Hugging Face hub: what is in a repository is checked before anything is downloaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from quicksilver.errors import BadInputError
from quicksilver.sources.directory import is_code, is_pickle
from quicksilver.sources.home import need_disk, writable, writing

# "consolidated" files hold the same weights once more, in a maker's own layout.
WANTED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "README.md")
UNWANTED = ("consolidated*", "*/*")
_ACCEPT_PREFIXES = ("llama", "gemma")


@dataclass(frozen=True, slots=True)
class Download:
    folder: Path
    licence: str


def download(repository: str, *, accept_licence: bool = False) -> Download:
    """Bring a repository's safetensors, tokenizer and JSON files into the Hugging Face cache, and return its folder.

    Without a network it takes what is in the cache already. Raises BadInputError (no network, no such repository, gated,
    pickled weights only, remote code, a licence that has to be accepted first) or NotEnoughError (no disk).
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    endpoint = os.environ.get("HF_ENDPOINT") or None
    cache = Path(constants.HF_HUB_CACHE)
    patterns = {"allow_patterns": list(WANTED), "ignore_patterns": list(UNWANTED)}
    try:
        info = HfApi(endpoint=endpoint).model_info(repository, files_metadata=True)
        files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        _check_names(repository, list(files))
        licence = str((info.card_data or {}).get("license") or "not stated")
        if licence.startswith(_ACCEPT_PREFIXES) and not accept_licence:
            raise acceptance_needed(repository, licence)
        writable(cache, "HF_HOME")
        size = sum(
            n for name, n in files.items() if name.endswith(".safetensors") and not name.startswith("consolidated")
        )
        need_disk(cache, size, f"Downloading {repository}", "HF_HOME")
        with writing(cache, "HF_HOME"):
            folder = snapshot_download(repository, endpoint=endpoint, **patterns)
        return Download(Path(folder), licence)
    except GatedRepoError as error:
        raise BadInputError(
            f"{repository} is gated: ask for access on its page, then log in with `hf auth login` and try again."
        ) from error
    except RepositoryNotFoundError as error:
        raise BadInputError(f"The Hugging Face hub has no model named {repository!r} (or it is private).") from error
    except HFValidationError as error:
        raise BadInputError(f"{repository!r} can't be the name of a model on the Hugging Face hub.") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HfHubHTTPError, OSError, *_network_errors()) as error:
        try:
            return Download(Path(snapshot_download(repository, local_files_only=True, **patterns)), "not stated")
        except (LocalEntryNotFoundError, OSError):
            raise BadInputError(
                f"{repository} is neither a folder here nor in the Hugging Face cache, and the hub can't be reached; download it "
                f"where there is a network (`hf download {repository}`) and give the folder's path."
            ) from error


def acceptance_needed(name: str, licence: str) -> BadInputError:
    """Make the error for a licence that the user has not accepted."""
    return BadInputError(f"{name} comes under the {licence}; read it, and give --accept-licence if you accept it.")


def _network_errors() -> tuple[type[Exception], ...]:
    import httpx

    return (httpx.HTTPError,)


def _check_names(repository: str, files: list[str]) -> None:
    top = [name for name in files if "/" not in name]
    if code := sorted(name for name in top if is_code(name)):
        raise BadInputError(f"{repository} brings code of its own ({code[0]}), which is never run here.")
    if any(name.endswith(".safetensors") and not name.startswith("consolidated") for name in top):
        return
    if pickled := sorted(name for name in top if is_pickle(name)):
        raise BadInputError(
            f"{repository} has its weights only as pickle files ({pickled[0]}), which can run code when they are read; "
            "only safetensors are taken."
        )
    raise BadInputError(f"{repository} holds no weights as safetensors.")
