import json
from pathlib import Path

import pytest

from pixelhdm.data.prompt_fields import Prompt
from pixelhdm.data.prompts import read_prompts
from pixelhdm.errors import UserError

GENEVAL = {"tag": "two_object", "include": [{"class": "cow", "count": 1}], "prompt": "a cow"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, *lines: object) -> str:
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    Path(name).write_text(text, encoding="utf-8")
    return name


def test_a_text_file_has_one_prompt_a_line_and_blank_lines_do_not_count():
    file = write("own.txt", "\ufeffa red barn\r\n\n  ein Haus, grün \n\t\na line\u2028of two")
    found = read_prompts(file)
    assert [prompt.text for prompt in found.prompts] == [
        "a red barn",
        "ein Haus, grün",
        "a line\u2028of two",
    ]
    assert [prompt.place for prompt in found.prompts] == [f"own.txt, line {n}" for n in (1, 3, 5)]
    assert (found.layout, found.name) == ("plain", "own")


def test_jsonl_and_yaml_list_take_the_same_keys():
    whole = {
        "prompt": "a barn",
        "negative_prompt": "rain",
        "seed": 7,
        "scale": 3,
        "file_name": "barns/red.png",
    }
    values = [
        whole | {"size": "48x64"},
        whole | {"size": [48, 64]},
        whole | {"height": 48, "width": 64},
        {"prompt": "plain", "seed": None},
    ]
    listed = read_prompts([*values, "a text"]).prompts
    read = read_prompts(write("own.jsonl", *values)).prompts
    for got in (listed, read):
        expected = Prompt("a barn", "", "rain", 7, 48, 64, 3.0, "barns/red")
        assert [p._replace(place="") for p in got[:3]] == [expected] * 3
        assert got[3]._replace(place="") == Prompt("plain", "")
    assert listed[4] == Prompt("a text", "data.prompts, entry 5")
    assert read[3].place == "own.jsonl, line 4"


def test_genevals_lines_are_kept_as_they_are():
    lines = [
        json.dumps(GENEVAL),
        json.dumps(GENEVAL | {"prompt": "two", "exclude": []}, indent=None),
    ]
    found = read_prompts(write("evaluation_metadata.jsonl", "\n".join(lines)))
    assert found.layout == "geneval"
    assert [prompt.text for prompt in found.prompts] == ["a cow", "two"]
    assert [prompt.metadata for prompt in found.prompts] == lines


def test_a_folder_holds_a_prompt_in_the_first_line_of_each_text():
    Path("prompts").mkdir()
    for name, text in {"b1.txt": "second\nmore", "a.txt": "\nfirst\n", "x.csv": "no"}.items():
        write(f"prompts/{name}", text)
    found = read_prompts("prompts")
    assert [(prompt.text, prompt.file_name) for prompt in found.prompts] == [
        ("first", "a"),
        ("second", "b1"),
    ]
    assert (found.layout, found.name) == ("dpg", "prompts")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"prompt": " "}, "prompt must not be empty"),
        ({"prompt": None}, "prompt must be a text, got None"),
        ({"prompt": 3}, "prompt must be a text, got 3"),
        ({"seed": 3}, "prompt must be given, got seed"),
        ({}, "prompt must be given, got nothing"),
        ({"prompt": "a", "sead": 3, "x": 1}, "keys must be among prompt, .*, got sead, x"),
        ({"prompt": "a", "negative_prompt": 3}, "negative_prompt must be a text, got 3"),
        ({"prompt": "a\ud800"}, "prompt must hold characters alone"),
        ({"prompt": "a", "seed": -1}, "seed must be a whole number from 0 on, got -1"),
        ({"prompt": "a", "seed": 1.5}, "seed must be a whole number from 0 on, got 1.5"),
        ({"prompt": "a", "seed": True}, "seed must be a whole number from 0 on, got True"),
        ({"prompt": "a", "width": 0}, "width must be a whole number from 1 on, got 0"),
        ({"prompt": "a", "size": 64}, "size must be .height, width. or HEIGHTxWIDTH, got 64"),
        ({"prompt": "a", "size": [64, "8"]}, "width must be a whole number from 1 on, got '8'"),
        ({"prompt": "a", "size": "8x8", "width": 8}, "size must stand alone, got height or width"),
        ({"prompt": "a", "scale": "big"}, "scale must be a finite number, got 'big'"),
        ({"prompt": "a", "scale": float("nan")}, "scale must be a finite number, got nan"),
        ({"prompt": "a", "file_name": "../a"}, "file_name must be a relative path without .., got"),
        ({"prompt": "a", "file_name": "/a"}, "file_name must be a relative path without .."),
        ({"prompt": "a", "file_name": "C:\\a"}, "file_name must be a relative path"),
        ({"prompt": "a", "file_name": ""}, "file_name must be a relative path"),
        ({"prompt": "a", "file_name": 3}, "file_name must be a relative path"),
        (GENEVAL, "every line must be GenEval's|keys must be among"),
    ],
)
def test_what_cannot_be_meant_is_named_with_its_place(value, words):
    with pytest.raises(UserError, match=rf"own.jsonl, line 3: {words}|own.jsonl, line 1: every"):
        read_prompts(write("own.jsonl", {"prompt": "fine"}, "\n", value))
    with pytest.raises(UserError, match=rf"data.prompts, entry 2: ({words})"):
        read_prompts(["fine", value])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("own.txt", "\n \n", "data.prompts must hold prompts, got none in own.txt"),
        ("own.jsonl", '{"prompt": "a"}\n{"prompt"\n', "own.jsonl, line 2: must be JSON, got"),
        ("own.jsonl", '"a cat"\n', 'line 1: must be a JSON object with a prompt, got "a cat"'),
        ("own.yaml", "- a\n", "must be a .txt with one prompt a line or a .jsonl, got own.yaml"),
        ("own.txt", "a\0b\n", "own.txt, line 1: prompt must hold characters alone"),
    ],
)
def test_files_that_cannot_be_read(name, text, words):
    with pytest.raises(UserError, match=words):
        read_prompts(write(name, text))


def test_what_is_no_prompt_at_all():
    with pytest.raises(UserError, match=r"got a cat, which does not exist. Prompts themselves are"):
        read_prompts("a cat")
    with pytest.raises(UserError, match=r"data.prompts must hold prompts, got none in \[\]"):
        read_prompts([])
    with pytest.raises(UserError, match=r"entry 1: must be a text or a mapping, got 1984. Put it"):
        read_prompts([1984])
    Path("latin.txt").write_bytes("grün".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.txt must be text in UTF-8"):
        read_prompts("latin.txt")
    Path("empty").mkdir()
    with pytest.raises(UserError, match="must hold prompts, got none in empty"):
        read_prompts("empty")
    write("empty/1.txt", "\n")
    with pytest.raises(UserError, match=r"empty/1.txt: prompt must not be empty"):
        read_prompts("empty")
