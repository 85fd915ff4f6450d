"""Folder of a hardening: several runs, and the targets that were fine-tuned between them."""

from __future__ import annotations

from pathlib import Path

from astra_rl.config.loading import load_recorded_config
from astra_rl.config.schema import RunConfig
from astra_rl.errors import ConfigurationError
from astra_rl.runs.file_types import FirstRun
from astra_rl.runs.folder import RunFolder, read_own
from astra_rl.runs.resume import check_same_run, differences


class HardeningFolder(RunFolder):
    """Names of the files of a hardening, and its check on resume.

    It holds the resolved configuration, one folder per round, one per pair of attacker and target
    of different rounds, and the report. Round 0 is the target before hardening.

    Args:
        path: The folder; created if it does not exist.
    """

    CONFIG = "harden.yaml"

    @classmethod
    def is_one(cls, path: Path) -> bool:
        """Whether a folder holds a hardening."""
        return (path / cls.CONFIG).is_file()

    @property
    def result(self) -> Path:
        """All rates, see `Hardening.as_dict`."""
        return self.path / "harden.json"

    @property
    def first_run(self) -> Path:
        """Path of the run whose attacker is the first, if it was given."""
        return self.path / "first_run.json"

    @property
    def known_first(self) -> Path | None:
        """The run whose attacker is the first, if it was given.

        Raises:
            ConfigurationError: The file that names it cannot be read.
        """
        if not self.first_run.is_file():
            return None
        return Path(read_own(self.first_run, FirstRun)["run"])

    def round(self, number: int) -> RunFolder:
        """Folder of a round: training data, and attempts at benign requests."""
        return RunFolder(self.path / f"round_{number}")

    def attack(self, number: int) -> RunFolder:
        """Run of the attacker that is trained against the target of a round."""
        return RunFolder(self.round(number).path / "attack", part_of=self.path)

    def target(self, number: int) -> Path:
        """Adapter of the target of a round, in Hugging Face format; round 0 has none."""
        return self.path / f"round_{number}" / "target"

    def drawn(self, side: str, number: int) -> Path:
        """How often each earlier opponent is drawn in a round, by name; see ``harden.opponents``.

        Args:
            side: ``"attackers"`` that found the failures of a target, or ``"targets"`` of an
                attacker.
            number: The round.
        """
        return self.path / f"round_{number}" / f"drawn_{side}.json"

    def pair(self, attacker: int, target: int) -> RunFolder:
        """Attempts of the attacker of one round at the target of another."""
        return RunFolder(self.path / "cross" / f"attacker_{attacker}_target_{target}")

    def open(self, config: RunConfig, first: Path | None) -> Path | None:
        """Begin or resume, and return the first run if one was given.

        Args:
            config: The current configuration.
            first: The run whose attacker is the first; None if there is none, or to resume.

        Raises:
            ConfigurationError: The folder has other files, or was begun with other settings or
                another first run. Only the number of rounds may differ.
        """
        if not self.config.is_file():
            others = [each.name for each in self.path.iterdir() if not each.name.startswith(".")]
            if others:
                raise ConfigurationError(
                    f"{self.path} is not empty; choose a new folder for this hardening."
                )
            if first is not None:
                self.write_json(self.first_run, {"run": str(first.resolve())})
            self.write_text(self.config, config.to_yaml())
        then = load_recorded_config(self.config).harden
        kept = config.harden.model_copy(update={"rounds": then.rounds})
        changes = list(differences(then.model_dump(), kept.model_dump(), "harden"))
        known = self.known_first
        if first is not None and first.resolve() != known:
            then_first = None if known is None else str(known)
            changes.append(f"the first run: {then_first!r} then, {str(first.resolve())!r} now")
        if changes:
            raise ConfigurationError(
                f"{self.path} was begun with other settings:\n  " + "\n  ".join(changes) + "\nUse "
                "the original settings, or choose another folder."
            )
        check_same_run(config.to_yaml(), self)  # and store the number of rounds
        return known
