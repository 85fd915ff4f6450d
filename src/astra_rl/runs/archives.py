"""Files of the archive of a search in the folder of a run."""

from __future__ import annotations

import csv

from astra_rl.evaluation.show.escaping import csv_cell
from astra_rl.infra.jsonio import atomic_file
from astra_rl.methods.archive import Archive
from astra_rl.runs.folder import RunFolder


def write_archive(folder: RunFolder, archive: Archive) -> None:
    """Write ``archive.json`` and ``archive.csv``: a row per cell, with its best attack and score.

    Text in the table is escaped for spreadsheets, see `csv_cell`.
    """
    cells = archive.as_dict()
    folder.write_json(folder.archive, cells)
    with atomic_file(folder.archive_table) as file:
        table = csv.writer(file, lineterminator="\r\n")
        table.writerow(["risk", "style", "attack", "score"])
        for cell in cells:
            text = [csv_cell(cell[name] or "") for name in ("risk", "style", "attack")]
            table.writerow([*text, "" if cell["score"] is None else cell["score"]])
