"""A comparison on the page of ``report``: its answer, its sections, and the runs of its candidates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bevreshape.comparison.answer import Answer, find_answer
from bevreshape.comparison.comparison import SETTINGS_FILE, Comparison
from bevreshape.comparison.outcome import Outcome
from bevreshape.comparison.sentence import answer_sentence
from bevreshape.errors import InputError
from bevreshape.reporting.comparison_sections import finding_sections, method_sections
from bevreshape.reporting.page import Section
from bevreshape.reporting.runs import Run, read_runs


@dataclass(frozen=True)
class ReportedComparison:
    """A comparison in a folder, and its answer."""

    folder: Path
    outcome: Outcome
    answer: Answer

    @property
    def sentence(self) -> str:
        """Return the answer as one sentence."""
        return answer_sentence(self.outcome, self.answer)

    def findings(self) -> list[Section]:
        """Return the sections on what was found, the charts first."""
        return sorted(finding_sections(self.outcome, self.answer), key=lambda section: not section.charts)

    def methods(self) -> list[Section]:
        """Return the sections on how it was found."""
        return method_sections(self.outcome)

    def rows(self) -> list[list[Run]]:
        """Return the judged runs of every candidate whose folders are still there, the choice first.

        Raises:
            InputError: when one cannot be read.
        """
        chosen = [] if self.answer.choice is None else [self.answer.choice]
        found = []
        for candidate in [*chosen, *(rival.candidate for rival in self.answer.rivals)]:
            folders = [self.folder / run.folder for run in candidate.runs]
            found.append([run for one in folders if (one / "metrics.json").is_file() for run in read_runs(one)])
        return [runs for runs in found if runs]


def stored_comparisons(folders: Sequence[Path]) -> list[ReportedComparison]:
    """Return the comparisons in and below folders.

    Raises:
        InputError: when one cannot be read.
    """
    found = []
    for folder in folders:
        for path in sorted(folder.rglob(SETTINGS_FILE)):
            outcome = _stored_outcome(path)
            found.append(ReportedComparison(path.parent, outcome, find_answer(outcome)))
    return found


def _stored_outcome(path: Path) -> Outcome:
    try:
        return Comparison.stored(path.parent).outcome()
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise InputError(
            f"{path}, or the records next to it, are damaged ({reason}); restore them, or name another folder"
        ) from None


def titled(comparisons: Sequence[ReportedComparison], sections: Sequence[Sequence[Section]]) -> list[Section]:
    """Return the sections of each comparison in one list; of several comparisons, with their titles."""
    return [
        section if len(comparisons) == 1 else replace(section, title=f"{one.outcome.title}: {section.title}")
        for one, own in zip(comparisons, sections, strict=True)
        for section in own
    ]
