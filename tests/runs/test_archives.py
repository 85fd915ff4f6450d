"""Files and the map of an archive: every cell, and hostile text is escaped."""

from __future__ import annotations

import csv
import json

from tests.hostile import HOSTILE

from astra_rl.evaluation.show.report import ReportData, render_report
from astra_rl.methods.archive import Archive, Cell
from astra_rl.runs.archives import write_archive
from astra_rl.runs.folder import RunFolder


def test_the_files_have_every_cell_and_no_text_is_a_formula(tmp_path):
    folder = RunFolder(tmp_path / "run")
    archive = Archive(["=HYPERLINK(1)", "b"], ["x", "y"])
    archive.add(Cell("=HYPERLINK(1)", "x"), "=cmd|' /C calc'!A0", 0.25)
    write_archive(folder, archive)
    assert json.loads(folder.archive.read_text()) == archive.as_dict()
    with folder.archive_table.open(newline="") as file:
        header, first, *others = csv.reader(file)
    assert header == ["risk", "style", "attack", "score"]
    assert first[3] == "0.25"
    assert not any(cell.startswith("=") for cell in first)
    assert others == [["'=HYPERLINK(1)", "y", "", ""], ["b", "x", "", ""], ["b", "y", "", ""]]


def test_the_map_on_the_page_names_every_cell_and_escapes_attacks():
    archive = Archive(["a <b>risk</b>"], [f"style {number}" for number in range(len(HOSTILE) + 1)])
    for number, text in enumerate(HOSTILE):
        archive.add(archive.cells[number], text, number / len(HOSTILE))
    page = render_report(ReportData(title="t", archive=archive.as_dict()))
    assert "a &lt;b&gt;risk&lt;/b&gt;" in page
    assert page.count('scope="col">style ') == len(archive.cells)
    assert f"{len(HOSTILE)} of {len(archive.cells)} cells have an attack." in page
    assert page.count('<td class="aside">empty</td>') == 1
    assert "<script>alert" not in page
    assert 'aria-labelledby="archive-caption"' in page
