"""The classes of a source's images."""

from typing import Literal

from pixelhdm.data.prepare.items import FilePlace, Item, Listing
from pixelhdm.errors import UserError

Labels = Literal["auto", "folders", "none"]
MOST_CLASSES = 1_000_000  # a number above it is no class's


def give_labels(listing: Listing, labels: Labels) -> None:
    """Number the classes of a listing's images by one of the rules, and note how.

    Raises:
        UserError: an image that must have a class has none.
    """
    items = listing.items
    if labels == "none":
        listing.classes = ()
        for item in items:
            item.label = item.class_name = None
    elif labels == "folders" or (labels == "auto" and are_class_folders(listing)):
        for item in items:
            if item.folder is None:
                raise UserError(
                    "labels=folders must find every image in a class folder, got "
                    f"{item.path} outside of one. {remedy(listing)}"
                )
            item.class_name, item.label = item.folder, None
        number_names(listing)
        listing.notes.append(f"labels: the {len(listing.classes)} folders' names, in their order")
    elif any(item.label is not None for item in items):
        check_alike(items)
        check_numbers(listing)
    elif any(item.class_name is not None for item in items):
        number_names(listing)
        listing.notes.append(f"labels: the {len(listing.classes)} names that the source gives")


def remedy(listing: Listing) -> str:
    """What helps where an image lies in no class folder."""
    if any(isinstance(item.place, FilePlace) for item in listing.items):
        return "Move it into one, or set labels to none."
    return "Leave labels out: auto takes what the source gives."


def check_alike(items: list[Item]) -> None:
    """Raise a UserError where some images have numbers and others names for their classes."""
    named = next((i for i in items if i.label is None and i.class_name is not None), None)
    if named is not None:
        numbered = next(item for item in items if item.label is not None)
        raise UserError(
            f"labels must be all numbers or all names, got {numbered.label} for {numbered.path} "
            f"and {named.class_name} for {named.path}. Make them alike, or set labels to none, or "
            "to folders."
        )


def are_class_folders(listing: Listing) -> bool:
    """Whether all images lie in one of several folders, and nothing else says what they show."""
    items = listing.items
    told = any(
        i.may_have_captions or i.class_name is not None or i.label is not None for i in items
    )
    folders = {item.folder for item in items}
    return not told and None not in folders and len(folders) > 1


def number_names(listing: Listing) -> None:
    """Number the class names in their order."""
    names = sorted({item.class_name for item in listing.items if item.class_name is not None})
    number = {name: place for place, name in enumerate(names)}
    for item in listing.items:
        item.label = number.get(item.class_name)
    listing.classes = tuple(names)


def check_numbers(listing: Listing) -> None:
    """Give the numbers of a source their names: those that it gives, or the numbers themselves."""
    labelled = [item for item in listing.items if item.label is not None]
    wrong = next((i for i in labelled if not 0 <= i.label < MOST_CLASSES), None)
    if wrong is not None:
        raise UserError(
            f"labels must be numbers of classes, 0 … {MOST_CLASSES - 1:,}, got {wrong.label} for "
            f"{wrong.path}. Correct them, or set labels to none."
        )
    names = list(listing.classes)
    for number in range(len(names), max(item.label for item in labelled) + 1):
        names.append(str(number))
    listing.classes = tuple(names)
    for item in labelled:
        item.class_name = item.class_name or names[item.label]
    listing.notes.append(f"labels: the numbers that the source gives, 0 … {len(names) - 1}")


def first_folder(path: str) -> str | None:
    """The first folder of a path; None where it has none."""
    folder, _, rest = path.partition("/")
    return folder if rest else None


def sort_items(items: list[Item]) -> list[Item]:
    """Images in the order of their paths, the same everywhere."""
    return sorted(items, key=lambda item: item.path)
