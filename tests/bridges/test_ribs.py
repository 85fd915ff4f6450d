"""pyribs keeps the same attacks as our archive, whatever was offered in which order."""

from random import Random

import pytest

from astra_rl.bridges.ribs import to_ribs
from astra_rl.errors import MissingDependencyError
from astra_rl.methods.archive import Archive, Cell

RISKS, STYLES = ["a", "b", "c"], ["x", "y", "z", "w"]


@pytest.mark.bridge("ribs")
@pytest.mark.parametrize("seed", range(5))
def test_pyribs_keeps_what_our_archive_keeps(seed):
    """An oracle: each attack is offered to both; ties and worse ones change neither."""
    random, ours = Random(seed), Archive(RISKS, STYLES)
    theirs = to_ribs(ours)
    for number in range(200):
        row, column = random.randrange(3), random.randrange(4)
        score = random.randrange(1, 11) / 10
        kept = ours.add(Cell(RISKS[row], STYLES[column]), f"attack {number}", score)
        added = theirs.add_single(f"attack {number}", score, [row + 0.5, column + 0.5])
        assert bool(added["status"] > 0) == kept
    assert theirs.stats.coverage == ours.coverage == 1.0
    assert theirs.stats.norm_qd_score == pytest.approx(ours.qd_score)
    assert elites(to_ribs(ours)) == elites(theirs)
    assert elites(theirs) == {
        (RISKS.index(cell.risk), STYLES.index(cell.style)): (elite.attack, elite.score)
        for cell, elite in ours.elites.items()
    }


def elites(grid):
    found = grid.data()
    rows = zip(found["measures"], found["solution"], found["objective"], strict=True)
    return {(int(row), int(column)): (text, score) for (row, column), text, score in rows}


@pytest.mark.bridge("ribs")
def test_an_empty_archive_is_an_empty_grid():
    assert to_ribs(Archive(RISKS, STYLES)).empty


def test_without_pyribs_the_message_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ribs.archives", None)
    with pytest.raises(MissingDependencyError, match="ribs"):
        to_ribs(Archive(RISKS, STYLES))
