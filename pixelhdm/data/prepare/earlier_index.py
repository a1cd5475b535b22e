"""What lies already where an index is to be written."""

import json
from pathlib import Path
from typing import Any

from pixelhdm.data.indexing.formats import read_shard_index
from pixelhdm.data.prepare.shards import DATASET
from pixelhdm.errors import UserError, one_line

Entries = dict[str, dict[str, Any]]  # of an index, by name in the tar
PLACE = ("offset", "length")


def earlier_files(tar: str) -> Entries:
    """The entries of the index beside a tar; none where there is no index.

    Raises:
        UserError: a JSON of another kind lies in its place.
    """
    file = Path(tar).with_suffix(".json")
    try:
        index = read_shard_index(file.read_bytes())
        problem = "which is none" if index is None else ""
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        index, problem = None, f"which cannot be read ({one_line(error)})"
    if index is None:
        raise UserError(
            f"index_only must find the place of an index free or with an index, got {file}, "
            f"{problem}. Move it away."
        )
    return {
        member.name: {**member.facts, "offset": member.offset, "length": member.length}
        for member in index.members
    }


def earlier_about(folder: Path) -> dict[str, Any]:
    """The dataset.json of a folder of shards; nothing where there is none.

    Raises:
        UserError: it is of another kind.
    """
    file = folder / DATASET
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        content = None
    lists = [content.get(key) for key in ("shards", "classes")] if isinstance(content, dict) else []
    if not any(isinstance(one, list) for one in lists) or not all(
        isinstance(one, list | None) for one in lists
    ):
        raise UserError(
            f"index_only must find {DATASET} free or with the shards and classes of a data set, "
            f"got {file}, which is of another kind. Move it away."
        )
    return content


def merged(earlier: Entries, now: Entries) -> tuple[Entries, list[str]]:
    """The entries of a new index with what an earlier one knew besides, and damage: images whose
    bytes have changed in their place since. These keep the CRC-32 of the earlier index, so that
    training and verify notice them too.
    """
    files, damage = {}, []
    for name, entry in now.items():
        old = earlier.get(name, {})
        if any(old.get(key) != entry[key] for key in PLACE):
            files[name] = entry  # of another file
            continue
        files[name] = old | entry
        if "crc32" in old and "crc32" in entry and old["crc32"] != entry["crc32"]:
            files[name]["crc32"] = old["crc32"]
            damage.append(
                f"{name} has other bytes than its index says (crc32); delete the index first "
                "if this tar is a new one"
            )
    return files, damage
