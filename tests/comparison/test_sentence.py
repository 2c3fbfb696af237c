"""The answer as a sentence, in all cases: it must be true and readable aloud."""

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from comparison.outcomes import candidate, failed, family, outcome, waiting

from bevreshape.comparison.answer import find_answer
from bevreshape.comparison.outcome import Candidate, Outcome
from bevreshape.comparison.sentence import answer_sentence


def near(name: str, mean: float, **costs: float) -> Candidate:
    """A candidate whose seeds scarcely differ."""
    return candidate(name, [mean - 0.0004, mean, mean + 0.0003], **costs)


def spread(name: str, mean: float, **costs: float) -> Candidate:
    """A candidate whose seeds differ, not in the order of those of another one."""
    return candidate(name, [mean - 0.02, mean + 0.025, mean], **costs)


MLP, IPM = near("mlp", 0.5), near("ipm", 0.6, ms=40.0)
SLOW = near("slow", 0.7, ms=40.0)
LARGE = near("large", 0.8, memory_mb=900.0)

CASES: list[tuple[Outcome, str]] = [
    (
        outcome(near("a", 0.5, ms=3.0), near("b", 0.54, ms=11.2), SLOW, LARGE, latency_ms=20, memory_mb=500),
        "Within 20 ms and 500 MB, take b (mean IoU .540 on the test split, 11.2 ms exported): it is .040 above the "
        "next, a (95 % interval .040 to .040); if 11.2 ms is too slow, a (3 ms, −.040); without the limit of 20 ms, "
        "slow (40 ms, +.160); without the limit of 500 MB, large (900 MB, +.260).",
    ),
    (
        outcome(MLP, near("both", 0.8, ms=40.0, memory_mb=900.0), latency_ms=20, memory_mb=500),
        "Within 20 ms and 500 MB, only mlp is left (mean IoU .500 on the test split, 10 ms exported); without both "
        "limits, both (+.300).",
    ),
    (
        outcome(MLP, near("big", 0.6, parameters=5_400_000), parameters=2e6),
        "Within 2 M parameters, only mlp is left (mean IoU .500 on the test split, 10 ms exported); without the limit "
        "of 2 M parameters, big (5.4 M parameters, +.100).",
    ),
    (outcome(MLP), "mlp was compared with no other (mean IoU .500 on the test split, 10 ms exported)."),
    (
        outcome(MLP, latency_ms=20),
        "mlp was compared with no other (mean IoU .500 on the test split, 10 ms exported, within 20 ms).",
    ),
    (
        outcome(MLP, latency_ms=2),
        "mlp (mean IoU .500) does not stay within 2 ms: 10 ms is 8 ms above the limit of 2 ms.",
    ),
    (
        outcome(MLP, IPM, latency_ms=8),
        "None of 2 view transformers stays within 8 ms: the nearest is mlp (mean IoU .500), where 10 ms is 2 ms above "
        "the limit of 8 ms; without the limit of 8 ms, ipm (40 ms, mean IoU .600).",
    ),
    (
        outcome(candidate("mlp", [0.5, 0.5], ms=None), latency_ms=3),
        "mlp (mean IoU .500) does not stay within 3 ms: its latency was not measured, and the limit is 3 ms.",
    ),
    (
        outcome(MLP, candidate("ipm", [0.6] * 3, ms=None), latency_ms=20),
        "Within 20 ms, only mlp is left (mean IoU .500 on the test split, 10 ms exported); without the limit of 20 ms, "
        "ipm (latency not measured, +.100).",
    ),
    (outcome(failed("mlp", "the loss is NaN")), "mlp could not be trained: the loss is NaN."),
    (
        outcome(failed("mlp", "the loss is NaN."), failed("ipm", "out of memory")),
        "None of 2 view transformers could be trained, the first, mlp: the loss is NaN.",
    ),
    (
        outcome(MLP, failed("ipm", "out of memory"), latency_ms=20),
        "Only mlp could be trained (mean IoU .500 on the test split, 10 ms exported, within 20 ms); ipm failed.",
    ),
    (
        outcome(near("mlp", 0.5), near("ipm", 0.501, ms=12.0)),
        "Take ipm (mean IoU .501 on the test split, 12 ms exported): mlp is alike within .01 and faster (10 ms).",
    ),
    (
        outcome(near("mlp", 0.5, ms=9.6), near("ipm", 0.501)),  # 4 % are noise
        "Take ipm (mean IoU .501 on the test split, 10 ms exported): mlp is alike within .01 and no faster.",
    ),
    (
        outcome(near("mlp", 0.5, ms=9.6), near("ipm", 0.6)),
        "Take ipm (mean IoU .600 on the test split, 10 ms exported): it is .100 above the next, mlp (95 % interval "
        ".100 to .100).",
    ),
    (
        outcome(near("mlp", 0.5), near("ipm", 0.501)),
        "Take ipm (mean IoU .501 on the test split, 10 ms exported): mlp is alike within .01 and no faster.",
    ),
    (
        outcome(near("mlp", 0.5, ms=3.0), near("ipm", 0.501, ms=12.0), near("pool", 0.5008)),
        "Take ipm (mean IoU .501 on the test split, 12 ms exported): all 2 others are alike within .01, and mlp is the "
        "fastest (3 ms).",
    ),
    (
        outcome(near("mlp", 0.5), near("ipm", 0.501, ms=2.0), near("pool", 0.5008)),
        "Take ipm (mean IoU .501 on the test split, 2 ms exported): all 2 others are alike within .01 and none is "
        "faster.",
    ),
    (
        outcome(near("mlp", 0.4), near("ipm", 0.501), near("pool", 0.5008), near("b", 0.5005)),
        "Take ipm (mean IoU .501 on the test split, 10 ms exported): the next, pool, is alike (.000 ± .000), b is "
        "alike.",
    ),
    (
        outcome(candidate("mlp", [0.5]), candidate("ipm", [0.6], ms=20.0)),
        "Take ipm (mean IoU .600 on the test split, 20 ms exported): mlp is next (−.100), but one seed cannot tell; if "
        "20 ms is too slow, mlp (10 ms, −.100).",
    ),
    (
        outcome(spread("mlp", 0.5), near("ipm", 0.51, ms=8.0)),
        "Take ipm (mean IoU .510 on the test split, 8 ms exported): mlp is next (−.008 ± .056), but 3 seeds do not "
        "settle which is better.",
    ),
    (
        outcome(candidate("mlp", [0.583, 0.589, 0.588]), candidate("ipm", [0.6] * 3, ms=8.0)),
        "Take ipm (mean IoU .600 on the test split, 8 ms exported): mlp is next (−.013 ± .008), but 3 seeds do not "
        "settle whether that is more than .01.",
    ),
    (
        outcome(candidate("mlp", [0.5] * 3, [0.6] * 3), candidate("ipm", [0.55, 0.551, 0.55], [0.59] * 3)),
        "Take mlp (mean IoU .500 on the test split, 10 ms exported): the validation split puts it first, but on the "
        "test split ipm (+.050 ± .001) is better.",
    ),
    (
        outcome(
            candidate("mlp", [0.5] * 3, [0.6] * 3), candidate("ipm", [0.4, 0.401, 0.4], [0.59] * 3),
            candidate("pool", [0.55, 0.551, 0.55], [0.58] * 3),
        ),
        "Take mlp (mean IoU .500 on the test split, 10 ms exported): it is .100 above the next, ipm (95 % interval "
        ".098 to .101), but on the test split pool (+.050 ± .001) is better.",
    ),
    (
        outcome(replace(MLP, cost=None), replace(IPM, cost=None), missing=1, latency_ms=20),
        "Not complete (23 of 24 results are done), so far: costs are missing, so nothing can be chosen within 20 ms "
        "yet, and ipm has the highest IoU on the validation split.",
    ),
    (outcome(), "No view transformer was compared."),
    (outcome(waiting("mlp"), missing=24), "No answer yet: 0 of 24 results are done."),
    (
        outcome(MLP, waiting("ipm"), missing=12, latency_ms=20),
        "Not complete (12 of 24 results are done), so far: within 20 ms, take mlp (mean IoU .500 on the test split, "
        "10 ms exported).",
    ),
    (
        outcome(candidate("mlp", [0.5], seeds=[1]), candidate("ipm", [0.52], seeds=[2]), missing=12),
        "Not complete (12 of 24 results are done), so far: take ipm (mean IoU .520 on the test split, 10 ms exported): "
        "mlp is next, without a common seed so far.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("found", "sentence"), CASES, ids=range(len(CASES)))
def test_sentence(found: Outcome, sentence: str) -> None:
    assert answer_sentence(found, find_answer(found)) == sentence


LIMITS = list(product((None, 0.1, 4.0, 20.0), (None, 10.0, 60.0), (None, 7e5)))


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("seeds", [1, 3, 8])
def test_every_sentence_is_one_sentence_about_the_choice(limits: tuple[float | None, ...], seeds: int) -> None:
    latency, memory, parameters = limits
    rng = np.random.default_rng(seeds)
    for _ in range(3):
        names = rng.choice(list(family().candidates), rng.integers(1, 8), replace=False)
        whole = family(seeds, [one.name for one in names], latency_ms=latency, memory_mb=memory, parameters=parameters)
        answer = find_answer(whole)
        sentence = answer_sentence(whole, answer)
        assert sentence.endswith(".")
        assert not re.search(r"\.\.|  |None(?! of )|nan|inf\b|\( | ,", sentence), sentence
        assert not re.search(r"[a-z)]\. ", sentence), sentence
        if answer.choice is not None:
            assert re.search(rf"\b{answer.choice.name} (was compared|is left|\()", sentence), sentence
        else:
            assert re.match(r"None of|\w+ \(mean IoU \.\d{3}\) does not stay within", sentence), sentence
