"""Share a patch on the Hugging Face Hub, or in a folder laid out the same way.

    python -m muwa.patch push PATCH ORG/NAME [--base-model ORG/BASE] [--private]
    python -m muwa.patch pull ORG/NAME --out FILE [--revision REVISION]

A repository holds the patch and a model card. A target that starts with "/" or "." is a folder.
The token is the one of `hf auth login` or HF_TOKEN; it is never printed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import logging as hub_logging

from muwa.drafts import new_file
from muwa.fingerprint import file_digest
from muwa.patch.apply import read_patch
from muwa.patch.card import HUB, card_text, patch_entry, read_results
from muwa.types.report import PATCH

_ERRORS = (HfHubHTTPError, HFValidationError, EntryNotFoundError, OSError, HTTPError)


def is_folder(target: str) -> bool:
    """Whether a target of `push` or `pull` is a folder, not a repository."""
    return target.startswith(("/", "."))


def push(path: Path, target: str, *, base_model: str | None, private: bool, results: Path | None) -> str:
    """Upload a patch with its model card. The repository is made if it does not exist.

    Args:
        path: The patch file.
        target: "ORG/NAME" on the hub, or a folder ("./NAME").
        base_model: The hub id of the model that the patch is for; its card says the licence. It may also be a
            folder with a README.md, which then gives the licence only.
        results: results.json of the run; None takes the one beside the patch, if there is one.

    Returns:
        Where the patch is now.

    Raises:
        ValueError: The file is not a patch, or the results are of another edit.
        OSError: The hub refused or could not be reached; says why in one line, without the token.
    """
    patch = read_patch(path)
    run = read_results(patch, results or path.with_name("results.json"), required=results is not None)
    licence = _licence(base_model) if base_model else None
    hub_id = base_model if base_model and not Path(base_model).is_dir() else None
    entry = patch_entry(patch, file_digest(path), run)
    text = card_text([entry], HUB, base={"id": hub_id, "license": licence}, files={}, target=target)
    with tempfile.TemporaryDirectory() as draft:
        shutil.copyfile(path, Path(draft, PATCH))
        Path(draft, "README.md").write_text(text, encoding="utf-8")
        if is_folder(target):
            Path(target).mkdir(parents=True, exist_ok=True)
            for name in (PATCH, "README.md"):
                shutil.copyfile(Path(draft, name), Path(target, name))
            return target
        try:
            with _quiet():
                api = HfApi()
                api.create_repo(target, private=private, exist_ok=True)
                done = api.upload_folder(
                    repo_id=target, folder_path=draft, commit_message="Upload a muwa patch"
                )
        except _ERRORS as error:
            raise OSError(f"push to {target}: {_reason(error)}") from None
    return str(done.commit_url)


def pull(target: str, out: Path, *, revision: str | None) -> Path:
    """Download a patch and check it.

    Args:
        target: "ORG/NAME" on the hub, or a folder ("./NAME").
        out: The patch file to write; it appears complete or not at all.
        revision: A branch, tag or commit; None is the newest.

    Raises:
        ValueError: What is there is not a patch.
        OSError: The repository or its patch is missing, or the hub could not be reached; in one line.
        FileExistsError: `out` exists.
    """
    if out.exists():
        raise FileExistsError(f"{out}: exists already; --out wants a new file")
    try:
        found = Path(target, PATCH) if is_folder(target) else Path(_download(target, PATCH, revision))
    except _ERRORS as error:
        raise OSError(f"pull from {target}: {_reason(error)}") from None
    read_patch(found)
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_file(out) as draft:
        shutil.copyfile(found, draft)
    return out


def _download(target: str, name: str, revision: str | None) -> str:
    with _quiet():
        return hf_hub_download(target, name, revision=revision)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the client's log, which repeats what the error says."""
    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)


def _licence(base_model: str) -> str | None:
    """The licence that the base's model card says; None if it has no card or says none.

    Raises:
        OSError: The base is not on the hub, or the hub could not be reached.
    """
    try:
        folder = Path(base_model)
        card = folder / "README.md" if folder.is_dir() else Path(_download(base_model, "README.md", None))
        found = ModelCard.load(card, ignore_metadata_errors=True).data.license if card.is_file() else None
    except RemoteEntryNotFoundError:
        return None
    except _ERRORS as error:
        raise OSError(f"--base-model {base_model}: {_reason(error)}") from None
    return str(found) if found else None


def _reason(error: BaseException) -> str:
    """Why the hub did not do it, and what to do about it: one line."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return "the hub wants a token that it knows, or there is no such repository; run `hf auth login`"
    if isinstance(error, GatedRepoError):
        return "the repository is gated: ask for access on its page, then run `hf auth login`"
    if status == 403:
        return "the token may not do this; give one with write access to the repository (`hf auth login`)"
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or the token may not see it"
    if isinstance(error, RemoteEntryNotFoundError) or (
        isinstance(error, FileNotFoundError) and error.filename
    ):
        return f"the repository holds no {PATCH}, so no muwa patch"
    if isinstance(error, HFValidationError):
        return f"want ORG/NAME, or a folder that starts with ./ or / ({str(error).splitlines()[0][:120]})"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the hub is not asked"
    if status is not None:
        return f"the hub answered {status}"
    return "the hub could not be reached; check the network and HF_ENDPOINT"
