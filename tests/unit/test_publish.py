"""What `publish` takes for a document: one a line, pretty-printed, in arrays, one after the other."""

import json

import pytest

from consumer.commands.publish import documents

ONE, OTHER = {"id": "1", "data": {"note": 'brace } and "quote"'}}, {"id": "2", "data": {"list": [1, {"a": []}]}}


def found(text: str) -> list[tuple[int, bytes]]:
    return [(document.line, document.text) for document in documents(text.encode().splitlines(keepends=True))]


@pytest.mark.parametrize(
    "text",
    [
        f"{json.dumps(ONE)}\n{json.dumps(OTHER)}\n",
        f"{json.dumps(ONE)}{json.dumps(OTHER)}",
        f"{json.dumps(ONE, indent=2)}\n\n{json.dumps(OTHER, indent=4)}",
        json.dumps([ONE, OTHER]),
        json.dumps([ONE, OTHER], indent=2),
        f"[\n{json.dumps(ONE)},\n{json.dumps(OTHER)}\n]\n",
        f"\ufeff{json.dumps(ONE)}\r\n{json.dumps(OTHER)}\r\n",
    ],
    ids=[
        *("lines", "one after the other", "pretty-printed", "array", "pretty-printed array", "array of lines"),
        "as Windows writes it",
    ],
)
def test_each_object_is_a_document(text: str) -> None:
    assert [json.loads(document) for _, document in found(text)] == [ONE, OTHER]


def test_a_document_is_known_by_the_line_where_it_starts() -> None:
    text = f"\n{json.dumps(ONE, indent=2)}\n{json.dumps(OTHER)}\n"

    assert [line for line, _ in found(text)] == [2, 2 + json.dumps(ONE, indent=2).count("\n") + 1]


@pytest.mark.parametrize("broken", ["nonsense", '{"id": "1"', '{"id": "never ended', "}", "42", '"text"', '{"id": [1}'])
def test_what_is_broken_costs_no_other_line(broken: str) -> None:
    text = f"{json.dumps(ONE)}\n{broken}\n{json.dumps(OTHER)}\n"

    documents_found = [document for _, document in found(text)]

    assert json.loads(documents_found[0]) == ONE
    assert json.loads(documents_found[-1]) == OTHER


@pytest.mark.parametrize("broken", ["nonsense", '{"id": "1"', "42"])
def test_what_is_broken_is_a_document_of_its_own(broken: str) -> None:
    text = f"{json.dumps(ONE)}\n{broken}\n{json.dumps(OTHER)}\n"

    assert [line for line, _ in found(text)] == [1, 2, 3]


def test_an_empty_file_has_none() -> None:
    assert found("") == found("\n \n") == []
