"""Texts and task sets: what is read, and what a user is told when it can not be."""

import json

import pytest

from bitsweep.artifacts import Artifacts
from bitsweep.data.places import Keys
from bitsweep.data.sources import Item, TaskSet, TextSource, keyed
from bitsweep.errors import UserError


@pytest.fixture
def memory():
    return Artifacts(None)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_text_file_is_read_as_it_is(tmp_path, memory):
    path = write(tmp_path / "a.txt", "Eins.\n\nZwei, größer.\n")
    assert TextSource("a", path).text(memory) == "Eins.\n\nZwei, größer.\n"


def test_rows_of_json_lines_are_joined_by_a_blank_line(tmp_path, memory):
    path = write(tmp_path / "a.jsonl", '{"story": "one"}\n{"story": "two"}\n{"story": "three"}\n')
    assert TextSource("a", path, field="story").text(memory) == "one\n\ntwo\n\nthree"
    assert TextSource("a", path, field="story", join=" ", rows=2).text(memory) == "one two"


def test_a_line_of_json_ends_at_a_newline_alone(tmp_path, memory):
    lines = '{"story": "a\u2028b"}\n{"story": "c\u0085d"}\n'  # JSON allows both inside a string
    path = write(tmp_path / "a.jsonl", lines)
    assert TextSource("a", path, field="story", join="|").text(memory) == "a\u2028b|c\u0085d"


def test_a_cell_of_a_csv_keeps_its_lines(tmp_path, memory):
    path = write(tmp_path / "a.csv", 'story\n"one\ntwo"\nthree\n')
    assert TextSource("a", path, field="story", join="|").text(memory) == "one\ntwo|three"


def test_folding_leaves_one_newline_of_each_run(tmp_path, memory):
    path = write(tmp_path / "a.txt", "a\n\nb\n\n\nc\nd")
    assert TextSource("a", path, fold_newlines=True).text(memory) == "a\nb\nc\nd"


def test_max_chars_cuts_after_folding(tmp_path, memory):
    path = write(tmp_path / "a.txt", "a\n\nbcd")
    assert TextSource("a", path, fold_newlines=True, max_chars=3).text(memory) == "a\nb"


def test_an_edited_file_is_another_text(tmp_path, memory):
    path = tmp_path / "a.txt"
    source = TextSource("a", write(path, "before"))
    first = source.identity(memory)
    write(path, "after it")
    assert source.text(memory) == "after it"
    assert source.identity(memory) != first


def test_the_name_of_a_file_is_no_part_of_its_identity(tmp_path, memory):
    one = TextSource("a", write(tmp_path / "a.txt", "same"))
    other = TextSource("b", write(tmp_path / "b.txt", "same"))
    assert one.identity(memory) == other.identity(memory)


def test_a_hub_data_set_is_identified_without_a_network(memory):
    source = TextSource("w", "Salesforce/wikitext", split="test", revision="b08601e")
    source.check()
    assert source.identity(memory)["revision"] == "b08601e"


def test_the_generated_text_is_the_same_from_the_cache(tmp_path):
    source = TextSource("in", "pkg:reference/evaluation", rows=5)
    first = source.text(Artifacts(tmp_path))
    assert first == source.text(Artifacts(tmp_path)) == source.text(Artifacts(None))
    assert len(first) > 200


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("missing.txt", None, {}, "no such file"),
        ("empty.txt", " \n\n", {}, "is empty"),
        ("a.jsonl", '{"story": "one"}\n', {}, "field=text: .* it has story"),
        ("a.jsonl", "Once upon a time\n", {}, "line 1 of a is not JSON"),
        ("a.jsonl", '{"text": "one"}\n\n{"text": two}\n', {}, "line 3 of a is not JSON"),
        ("a.json", '[{"text": "one"},\n{"text": two}]', {}, "line 2 of a is not JSON"),
        ("a.json", "5", {}, "no list of objects"),
        ("a.jsonl", '{"text": "one"}\n{"text": null}\n', {}, "a row with null there; takes text"),
        ("a.jsonl", '{"text": 5}\n', {}, "a row with 5 there; takes text"),
        ("a.jsonl", '{"text": "a\\ud83d"}\n', {}, "line 1 of a has half a character"),
        ("a.csv", "story\none,two\n", {}, "field=text: .* it has story, None"),
    ],
)
def test_what_can_not_be_read_is_one_line(tmp_path, memory, name, content, options, message):
    path = tmp_path / name
    if content is not None:
        write(path, content)
    with pytest.raises(UserError, match=message) as caught:
        TextSource("a", str(path), **options).text(memory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"reference": "a"}, r"^data\.tasks\.t\.prompt=prompt: .* it has reference"),
        ({"prompt": "p", "reference": 5}, r"^data\.tasks\.t\.reference=reference: .* with 5 there"),
        ({"prompt": "p", "reference": None}, "with null there"),
        ({"prompt": "p", "reference": []}, r"with \[\] there"),
        ({"prompt": "p", "reference": ["a", 5]}, "takes text"),
    ],
)
def test_a_row_that_is_no_item_names_the_tasks_key(tmp_path, memory, line, message):
    path = write(tmp_path / "t.jsonl", json.dumps(line))
    with pytest.raises(UserError, match=message):
        keyed(TaskSet("t", path), Keys("data.tasks.t")).items(memory)


@pytest.mark.parametrize("options", [{"rows": 0}, {"rows": -1}, {"max_chars": -5}])
def test_a_number_of_rows_or_characters_is_from_one(tmp_path, options):
    path = write(tmp_path / "a.txt", "some words")
    with pytest.raises(UserError, match="takes a whole number from 1"):
        TextSource("a", path, **options).check()


def test_a_table_may_begin_with_a_mark_of_byte_order_and_hold_a_book(tmp_path, memory):
    book = "word " * 40_000
    path = write(tmp_path / "a.csv", f'\ufefftext\n"{book}"\n')
    assert TextSource("a", path).text(memory) == book


def test_bytes_that_are_not_utf8_are_refused(tmp_path, memory):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        TextSource("a", str(tmp_path / "a.txt")).text(memory)


def test_a_hub_data_set_out_of_reach_is_one_line_that_says_what_works(memory, monkeypatch):
    import datasets

    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach the hub\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"data=text data\.path=FILE") as caught:
        TextSource("w", "org/name", split="test").text(memory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "rows", "message"),
    [
        ("pkg:reference/nonsense", 5, "use pkg:reference/"),
        ("pkg:reference/evaluation", None, "rows"),
    ],
)
def test_a_generated_text_needs_a_known_name_and_a_number(memory, path, rows, message):
    with pytest.raises(UserError, match=message):
        TextSource("a", path, rows=rows).text(memory)


def test_rows_of_one_prompt_are_one_item_with_several_references(tmp_path, memory):
    path = write(
        tmp_path / "e2e.csv", 'mr,ref\n"name[A]",It is A.\n"name[A]",A it is.\nname[B],B.\n'
    )
    task = TaskSet("e2e", path, prompt="mr", reference="ref", template="Record: {prompt}\nText:")
    assert task.items(memory) == [
        Item("Record: name[A]\nText:", ("It is A.", "A it is.")),
        Item("Record: name[B]\nText:", ("B.",)),
    ]


def test_a_reference_may_be_a_list(tmp_path, memory):
    path = write(tmp_path / "t.jsonl", json.dumps({"prompt": "p", "reference": ["a", "b"]}))
    assert TaskSet("t", path).items(memory) == [Item("p", ("a", "b"))]


@pytest.mark.parametrize("name", ["translation", "description", "summary"])
def test_the_generated_task_sets_have_as_many_items_as_asked(memory, name):
    items = TaskSet(name, f"pkg:reference/{name}", rows=12).items(memory)
    assert len(items) == 12
    assert all(item.prompt.endswith(":") and item.references[0] for item in items)


@pytest.mark.parametrize(
    ("options", "message"), [({"rouge": "letters"}, "rouge="), ({"bleu_tokenize": "x"}, "bleu_tok")]
)
def test_an_unknown_way_to_split_words_is_refused(tmp_path, options, message):
    path = write(tmp_path / "t.jsonl", "{}")
    with pytest.raises(UserError, match=message):
        TaskSet("t", path, **options).check()


def test_real_e2e_has_several_references_for_each_meaning(shared_data, memory):
    path = shared_data / "generation" / "e2e_test.csv"
    items = TaskSet("e2e", str(path), prompt="mr", reference="ref").items(memory)
    assert len(items) == 630
    assert sum(len(item.references) for item in items) == 4693
