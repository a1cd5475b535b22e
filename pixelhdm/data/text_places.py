"""Where the text states of shards lie."""

from pixelhdm.data.reading.storage import TAR, is_local

ENDING = ".text.safetensors"
PROMPTS = "prompts"  # name of the file of single texts


def text_path(shard: str, folder: str | None) -> str:
    """Where the states of a shard's captions lie: beside it; in a chosen folder under the name of
    the shard's own folder, for sources may have shards of the same names.
    """
    return beside(shard, file_name(shard).removesuffix(TAR), folder)


def beside(shard: str, name: str, folder: str | None) -> str:
    """A file of text states in the folder of those of a shard, see `text_path`."""
    address, mark, query = (shard, "", "") if is_local(shard) else shard.partition("?")
    if folder is None:
        parent = address[: len(address) - len(file_name(shard))]
        return f"{parent}{name}{ENDING}{mark}{query}"
    parts = address.replace("\\", "/").split("/")
    own = parts[-2] if len(parts) > 1 else ""
    return "/".join(filter(None, (folder.rstrip("/"), own.strip(".:"), f"{name}{ENDING}")))


def file_name(shard: str) -> str:
    """Name of a shard's file."""
    return (shard if is_local(shard) else shard.partition("?")[0]).rpartition("/")[2]
