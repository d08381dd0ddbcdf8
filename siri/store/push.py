"""Sending an export to the hub, with huggingface_hub."""

from pathlib import Path

from siri.errors import InputError, first_line


def check_repository(name: str) -> None:
    """InputError for what is no name of a repository on the hub, before anything is written."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        if "/" not in name:
            raise HFValidationError("it has no owner")
    except HFValidationError as error:
        raise InputError(f"--push {name}: no name such as owner/model ({first_line(error)})") from None


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Send a folder to a model repository of the hub, which is made if it is not there; returns its address. The token
    is the one that `hf auth login` or HF_TOKEN gave. InputError where it cannot be sent; the folder stays."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Model exported by siri")
    except Exception as error:  # beside its own errors, whatever its transport raises
        raise InputError(
            f"--push {repository}: {folder} is written, but could not be sent ({first_line(error)}); log in with hf "
            f"auth login, then hf upload {repository} {folder}"
        ) from None
    return str(made)
