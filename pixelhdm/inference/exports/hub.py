"""Models from the Hugging Face Hub and to it."""

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from pixelhdm.errors import UserError, reason_of
from pixelhdm.inference.exports.exported import CONFIG, TEXT_ENCODER, WEAK, WEIGHTS
from pixelhdm.models.encoders.frozen import expanded, is_missing_folder

FILES = [CONFIG, WEIGHTS, f"{TEXT_ENCODER}/*", f"{WEAK}/*"]


def local_folder(source: str | Path, revision: str | None) -> Path:
    """The folder of an exported model; a name of the Hub is downloaded, or found in its cache.

    Args:
        source: folder, or name of the Hub.
        revision: branch, tag or commit of the Hub's; empty takes the newest.

    Raises:
        UserError: there is no such folder, or the Hub is out of reach or lacks it.
    """
    name = expanded(str(source))
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file() or not name:
        raise UserError(
            f"model must be the folder of an exported one or a name of the Hub, got "
            f"{name or 'nothing'}. A checkpoint is read by from_checkpoint, or exported by main.py "
            "export."
        )
    if is_missing_folder(name):
        raise UserError(
            f"model must be the folder of an exported one or a name of the Hub, got {name}, which "
            "does not exist. Write one with main.py export."
        )
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
    except Exception as error:  # a Hub that is out of reach can fail in any way
        raise UserError(
            f"model {name} must be a folder here or a name of the Hub that can be downloaded, got "
            f"{reason_of(error)}. Without a network give the folder that main.py export wrote."
        ) from error


def upload(folder: Path, repo_id: str, private: bool, token: str | None) -> str:
    """Upload a folder as a model of the Hub, made where there is none; its address.

    Raises:
        UserError: the Hub is out of reach or does not allow it.
    """
    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload model")
    except Exception as error:  # a Hub that is out of reach can fail in any way
        raise UserError(
            f"repo_id must be a name that you may write to on the Hub, got {repo_id}: "
            f"{reason_of(error)}. Log in with hf auth login; what was exported stays in its folder."
        ) from error
    return str(url)
