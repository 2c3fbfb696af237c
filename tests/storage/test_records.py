"""Records: resuming in another clone, and messages for unreadable lines."""

import json
import multiprocessing
from pathlib import Path

import pytest

from bevreshape.errors import InputError
from bevreshape.storage.records import Entry, Records


def test_results_are_kept_line_by_line(tmp_path: Path) -> None:
    records, entries = Records(tmp_path), [Entry(f"e{i}", {"rate": i, "at": (1, 2)}) for i in range(3)]
    for number, entry in enumerate(entries):
        records.add(entry, {"error": number})
    found = records.read()
    assert [records.get(found, entry) for entry in entries] == [{"error": i} for i in range(3)]
    assert len(records.path.read_text().splitlines()) == 3
    assert records.get(found, Entry("e9", {})) is None


def test_another_plan_is_refused(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.add(Entry("e", {"rate": 1}), {"error": 0})
    with pytest.raises(InputError, match=r"e was made with rate=1 but the plan says 2"):
        records.get(records.read(), Entry("e", {"rate": 2}))


def test_a_value_that_is_not_there_is_none(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.add(Entry("e", {"rate": 1, "old": None}), {"error": 0})
    assert records.get(records.read(), Entry("e", {"rate": 1, "new": None})) == {"error": 0}
    with pytest.raises(InputError, match=r"e was made with new=None but the plan says 2"):
        records.get(records.read(), Entry("e", {"rate": 1, "new": 2}))


@pytest.mark.parametrize(
    "line",
    [
        '{"name": "e", "made_with": {}, "res', "[]", "null", '{"name": 1}', "[" * 100_000,
        '{"name": [], "made_with": {}, "result": {}}', '{"name": "f", "made_with": 3, "result": {}}',
        '{"name": "f", "made_with": {}, "result": 3}', '{"name": 1, "made_with": {}, "result": {}}',
    ],
)  # fmt: skip
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    records = Records(tmp_path)
    records.add(Entry("e", {}), {"error": 0})
    with records.path.open("a") as file:
        file.write(f"{line}\n")
    for _ in range(2):
        with pytest.raises(InputError, match=r"records.jsonl, line 2: it is damaged"):
            records.read()
        records.add(Entry("f", {}), {})  # leaves it there
    assert json.loads(records.path.read_text().splitlines()[-1])["name"] == "f"


def test_a_line_that_was_cut_off_is_repeated(tmp_path: Path) -> None:
    """Whether its writer was killed or is still writing, at any byte but the last, its end."""
    records, text = Records(tmp_path), "a length of 80 °, é, \u2028"
    records.add(Entry("e", {}), {"error": 0})
    first = records.path.read_bytes()
    records.add(Entry("f", {"text": text}), {"error": 1})
    whole = records.path.read_bytes()
    for length in range(len(first), len(whole) - 1):
        records.path.write_bytes(whole[:length])
        assert records.read().keys() == {"e"}
        assert records.path.read_bytes() == whole[:length]
        records.add(Entry("f", {"text": text}), {"error": 1})
        assert records.path.read_bytes() == whole


def test_a_last_line_without_its_end_is_kept(tmp_path: Path) -> None:
    """An editor may leave out the end of the last line."""
    records = Records(tmp_path)
    records.add(Entry("e", {}), {"error": 0})
    first = records.path.read_bytes()
    records.path.write_bytes(first.rstrip(b"\n"))
    assert records.read().keys() == {"e"}
    records.add(Entry("f", {}), {"error": 1})
    assert records.path.read_bytes().startswith(first)
    assert records.read().keys() == {"e", "f"}


def test_a_first_line_that_was_cut_off_is_no_record(tmp_path: Path) -> None:
    records = Records(tmp_path)
    for begun in (b"", b'{"name": "e", "ma', b'{"name": "\xc3'):
        records.path.write_bytes(begun)
        assert records.read() == {}
        records.add(Entry("e", {}), {"error": 0})
        assert json.loads(records.path.read_bytes()) == {"name": "e", "made_with": {}, "result": {"error": 0}}


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    Records(tmp_path).path.write_bytes(b"\xff\xfe\x00\n")
    with pytest.raises(InputError, match="cannot be read"):
        Records(tmp_path).read()


def test_contradicting_lines_are_refused(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.add(Entry("e", {}), {"error": 0})
    records.add(Entry("e", {}), {"error": 0})
    assert records.read()
    records.add(Entry("e", {}), {"error": 1})
    with pytest.raises(InputError, match="twice with different results"):
        records.read()


def _claim(folder: Path, answer) -> None:
    with Records(folder).claimed(Entry("e", {})) as ours:
        answer.put(ours)


def test_an_entry_is_one_process_s_at_a_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    with Records(tmp_path).claimed(Entry("e", {})) as ours:
        assert ours
        process = context.Process(target=_claim, args=(tmp_path, answer))
        process.start()
        assert answer.get(timeout=120) is False
        process.join()
    with Records(tmp_path).claimed(Entry("e", {})) as ours:
        assert ours
